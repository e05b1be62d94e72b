"""C programs with the shadow page table's system calls on a kernel that has none. Imports no kernel."""
