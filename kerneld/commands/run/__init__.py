"""C programs with the system calls of the shadow page table, on a kernel without them. Imports no kernel."""
