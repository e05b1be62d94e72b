"""The invariants of a machine, each recomputed from nothing."""
