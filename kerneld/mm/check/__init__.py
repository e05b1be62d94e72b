"""Invariants: what must hold of a machine, recomputed from nothing."""
