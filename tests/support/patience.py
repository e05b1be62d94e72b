"""How long tests wait for what must come, before they say that it does not."""

SECONDS = 200.0
"""Of the clock. On a starved machine each answer may take seconds; nothing but a hang takes so long."""
