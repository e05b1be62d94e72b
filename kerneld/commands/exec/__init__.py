"""`kerneld exec`: real programs in the machine. The command, and the stub in their process: docs/programs.md.

Imports no kernel.
"""
