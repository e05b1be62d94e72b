"""The system calls: from a number and six words to a typed call of memory management, tasks or the shadow table."""
