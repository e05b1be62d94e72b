"""Processes: tasks, credentials, signals, the processor that runs them, fork, execve and exit. It knows no socket."""
