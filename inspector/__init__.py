"""The inspector: shows another process's page table live, through a shadow page table.

It is a program of the machine like any other: it knows `shared` (the client library, the flags), nothing of the kernel.
"""
