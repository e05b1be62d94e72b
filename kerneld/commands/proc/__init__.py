"""The files of kerneld's /proc: ps, maps, proc. Imports no kernel."""
