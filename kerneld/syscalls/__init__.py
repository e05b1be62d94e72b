"""The system calls: turn a number and six words into a typed call of memory management, tasks or the shadow table."""
