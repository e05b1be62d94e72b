"""The daemon's life, from its beginning to what a panic has left: start, stop, status, inspect-dump."""
