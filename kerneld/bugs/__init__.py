"""Kernels with one known mistake, for those who teach: `kerneld start --bug NAME`.

Each mistake is one that students make in the kernel part of the assignment. It is planted from outside, by wrappers
around functions of the kernel, as tracing does (kerneld/trace/fprobe.py): no line of the kernel knows of it.
"""
