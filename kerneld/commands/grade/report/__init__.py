"""The results for people and for other programs. Runs nothing."""
