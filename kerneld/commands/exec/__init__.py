"""`kerneld exec`: real programs in the machine. Has the command, and the stub for their process (docs/programs.md).

Imports no kernel.
"""
