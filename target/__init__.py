"""The target program: a process that changes its own memory step by step, for an inspector to watch.

It imports only `shared`: for the kernel it is a program like any other.
"""
