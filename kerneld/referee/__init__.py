"""The host's kernel as referee: the same memory programs on kerneld and on the real one, compared after each call."""
