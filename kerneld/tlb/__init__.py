"""The host's mappings of a native program's memory, kept as a processor keeps its TLB: docs/programs.md."""
