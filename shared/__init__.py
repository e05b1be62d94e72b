"""Both sides of the boundary: what the kernel and its user space agree on.

`uapi` holds numbers, flags and structures; `wire` packs and unpacks datagrams and does nothing else; `client` is what a
libc is to a C program; the rest is what the programs do alike: their streams, signals, names and options. Nothing here
imports the kernel.
"""
