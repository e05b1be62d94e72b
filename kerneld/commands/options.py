"""Options that several commands have, and the types of their values."""

from __future__ import annotations

from typing import Any

import click

from shared.option_types import ByteCount
from shared.uapi.page import PAGE_SIZE


class Size(ByteCount):
    """A size that memory can have: whole pages."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes. A value that is no size, or not a multiple of 4 KiB, is a usage error."""
        size_bytes = super().convert(value, param, ctx)
        if size_bytes % PAGE_SIZE:
            self.fail(f"'{value}': memory comes in whole pages of 4K", param, ctx)
        return size_bytes


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, on one line.")
