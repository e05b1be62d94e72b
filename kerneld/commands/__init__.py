"""What people type: a room for each kind of command, and in this one what all of them share.

A command owns its options, its words and its exit statuses. The kernel is imported by the commands that run it (start,
referee), and there only when they run; all others are clients of kerneld like any program, or read a file.
"""
