"""The machine: physical memory, x86-64 page-table entries, and the walk that the processor makes.

It knows no process.
"""
