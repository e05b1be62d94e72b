"""The commands that read a trace of a running kerneld: trace, ftrace, strace. Imports no kernel."""
