"""The host's kernel as referee: the same memory programs on kerneld and on the real kernel, compared after each call."""
