"""The target program: a process that changes its own memory step by step, for an inspector to watch.

It imports `shared` alone: to the kernel it is a program like any other.
"""
