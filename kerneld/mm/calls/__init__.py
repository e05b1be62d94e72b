"""The system calls of memory management, as functions on an mm: one file a call."""
