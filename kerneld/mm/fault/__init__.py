"""Page faults, and the other operations that bring pages into memory: populate, huge pages, MADV_COLLAPSE."""
