"""What grades one submission: a process for each, behind walls, with a private kernel. Knows no other submission."""
