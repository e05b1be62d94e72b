"""kerneld: a kernel in user space that people can look into."""
