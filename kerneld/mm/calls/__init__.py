"""The system calls of memory management, as functions on an mm: one file for each call."""
