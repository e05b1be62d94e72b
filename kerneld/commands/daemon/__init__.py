"""The life of the daemon: start, stop, status, inspect-dump."""
