"""Errors that keep this host from being the referee."""

from __future__ import annotations


class HostError(Exception):
    """This host cannot be the referee. The text says why in one line."""


class RunnerDiedError(HostError):
    """The runner has died in the middle of a program."""


class LinkError(HostError):
    """What comes from the other end of a link is no message, or nothing comes any more."""
