"""The inspector: shows another process's page table live, through a shadow page table.

It is a program of the machine like any other: it knows only `shared` (the client library, the flags), not the kernel.
"""
