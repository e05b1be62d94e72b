"""The machine as its /proc shows it: ps, maps, proc. Imports no kernel."""
