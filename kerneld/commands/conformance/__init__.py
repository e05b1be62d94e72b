"""Does a kernel do what the assignment asks? The kit of checks in C, and its command. Imports no kernel."""
