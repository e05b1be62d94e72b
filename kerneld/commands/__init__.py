"""The commands of kerneld: a room for each kind of command. The modules beside the rooms are for all commands.

A command owns its options, its words and its exit statuses. Only `start` and `referee` import the kernel, when they
run. The other commands are clients of kerneld like any program, or read a file.
"""
