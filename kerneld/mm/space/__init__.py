"""Address spaces: VMAs, page tables, the reverse map, and the primitives that change them."""
