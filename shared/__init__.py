"""Both sides of the boundary: what the kernel and its user space agree on.

`uapi` holds numbers, flags and structures; `wire` packs and unpacks datagrams and does nothing else; `client` is what a
libc is to a C program. Nothing here imports the kernel.
"""
