"""What holds in all tests.

Hypothesis has no deadline anywhere; on CI (the variable CI is set) it has the same examples each time. SIGINT is not
ignored, as a shell has it for what runs behind `&`: every program of a test would ignore it too.
"""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
