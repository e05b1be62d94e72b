"""The catalogue of mistakes that `kerneld start --bug` can plant: their names, words, and the checks that find them.

Imports nothing of the kernel, so that a client can ask which mistakes there are.
"""

from __future__ import annotations

from kerneld.bugs import bugs_of_calls, bugs_of_updates
from kerneld.bugs.bug import Bug

BUGS: dict[str, Bug] = {**bugs_of_calls.BUGS, **bugs_of_updates.BUGS}
"""By name. The names are those of the plants (kerneld/bugs/plants)."""
