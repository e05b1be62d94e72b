"""Both sides of the boundary: what the kernel and its user space agree on.

`uapi` holds numbers, flags and structures. `wire` packs and unpacks datagrams and does nothing else. `client` has the
role that libc has for a C program. The other modules are for all programs: their streams, signals, names and options.
Nothing here imports the kernel.
"""
