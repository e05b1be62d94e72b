"""`kerneld strace`: the calls of a process as strace(1) prints them, read from its trace. Imports no kernel."""
