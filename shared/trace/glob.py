"""Globs of names, as in a shell: `*`, `?`, `[ab]`. Clients choose globs, so they must not stay in a cache for ever.

Making a matcher takes a hundred times as long as using it. So a caller with many names makes the matcher once.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable


def compile_glob(glob: str) -> Callable[[str], object]:
    """Return a function that returns a true value for a name that matches as a whole, else None.

    Not fnmatch.fnmatchcase(): its cache keeps 32,768 globs. The cache of `re` keeps a few hundred.
    """
    return re.compile(fnmatch.translate(glob)).fullmatch
