"""Globs of names, as a shell has them: `*`, `?`, `[ab]`. What others ask for must not be remembered for ever.

To make a matcher takes a hundred times as long as to use it: who has many names to look at makes it once.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable


def compile_glob(glob: str) -> Callable[[str], object]:
    """Return what tells whether a whole name matches: something true if so, else None.

    Not fnmatch.fnmatchcase(): that keeps 32,768 globs, this keeps the few hundred that `re` does.
    """
    return re.compile(fnmatch.translate(glob)).fullmatch
