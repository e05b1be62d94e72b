"""What keeps `make hosts` from its work, in one line."""


class HostsError(Exception):
    """A line for whoever typed the command."""
