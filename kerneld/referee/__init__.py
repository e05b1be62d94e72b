"""The host's kernel as referee: runs the same memory programs on kerneld and on the host, and compares each call."""
