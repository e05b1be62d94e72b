"""kerneld measured beside the host's kernel and a bare socket: `make bench`."""
