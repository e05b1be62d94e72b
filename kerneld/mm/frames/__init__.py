"""The frames of RAM: their owners, the free frames, and the swap file."""
