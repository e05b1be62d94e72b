"""Tracepoints: what the kernel does, told to whoever asked, at no cost while nobody does.

No line of the kernel asks whether it is traced. While somebody wants an event, the functions it hangs on are replaced
by wrapping ones (`fprobe`), and put back when the last one goes. Answers to Linux v6.8 kernel/trace, kernel/events.
"""
