"""What happens in a running kerneld, as it happens: trace, ftrace, strace, and what they share. Imports no kernel."""
