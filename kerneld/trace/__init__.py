"""Tracepoints: they record what the kernel does, for the readers of traces. They cost nothing while nobody traces.

No line of the kernel asks whether it is traced. While a trace wants an event, wrappers replace the functions that
produce it (`fprobe`). When the last such trace ends, the original functions are put back. Answers to Linux v6.8
kernel/trace, kernel/events.
"""
