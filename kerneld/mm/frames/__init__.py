"""The frames of RAM: who has which, what is free, what is in the swap file."""
