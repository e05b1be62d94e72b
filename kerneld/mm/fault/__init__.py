"""Page faults, and all that takes pages into memory as faults do."""
