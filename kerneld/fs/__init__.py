"""Files that processes passed in, and the views under /proc. Knows processes and their memory, but not their calls."""
