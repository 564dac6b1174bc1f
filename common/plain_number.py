"""Numbers, whichever library they are of."""

from __future__ import annotations

import math
from typing import Any


def plain_number(value: Any) -> int | float | None:
    """A number of Python's from one of numpy's or torch's; None for anything else.

    An array or a tensor of one element is a number.
    """
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:
        value = value.item()
    return value if isinstance(value, int | float) else None


def finite_number(value: Any) -> float | None:
    """The number as a float; None for what is none, and for what is not finite."""
    number = plain_number(value)
    try:
        return float(number) if number is not None and math.isfinite(number) else None
    except OverflowError:
        return None
