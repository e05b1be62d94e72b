"""Why this host cannot be the referee."""

from __future__ import annotations


class HostError(Exception):
    """This host cannot be the referee; says why in one line."""


class RunnerDiedError(HostError):
    """The runner has gone in the middle of a program."""
