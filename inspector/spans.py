"""The range that a person has typed, as whole pages. A note says where it was rounded."""

from __future__ import annotations

from inspector.address import AddressError, Span, check_span, parse_address, parse_end, round_outward, split_range
from inspector.printing import note


def parse_span(start: str, end: str | None) -> Span:
    """Return the range of whole pages of START and END. A note says if it was rounded. Raises AddressError."""
    both = split_range(start)
    if both is not None:
        if end is not None:
            raise AddressError(f"{start} is a range already: {end} is too much")
        start, end = both
    first = parse_address(start)
    if end is None:
        raise AddressError(f"END is missing after {start}: an address, or +SIZE")
    span = check_span(first, parse_end(end, first))
    whole = round_outward(span)
    if whole != span:
        note(f"rounded outward to whole pages: {whole.start:#x} {whole.end:#x}")
    return whole
