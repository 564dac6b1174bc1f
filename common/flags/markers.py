"""What else is to be known of a flag, said where it is declared: `Annotated[bool, FREE]`.

A flag without a marker keeps its value on `--resume`.
"""

from __future__ import annotations

from enum import Enum, auto
from inspect import get_annotations
from typing import get_args


class Marker(Enum):
    """Something that is true of a flag."""

    FREE = auto()
    """May change on `--resume`: it changes no number that is learned from."""
    ROUNDING = auto()
    """May change on `--resume`, and changes numbers by rounding alone."""
    CONTENT = auto()
    """Names a file or directory of what is learned from; its content belongs to the run."""
    OWN_CODE = auto()
    """Names functions of the user's, if it names none that are built in; their source belongs to
    the run."""


FREE, ROUNDING = Marker.FREE, Marker.ROUNDING
CONTENT, OWN_CODE = Marker.CONTENT, Marker.OWN_CODE


def marked(config_class: type, marker: Marker) -> frozenset[str]:
    """The flags that carry a marker.

    A class that declares a flag anew, with another default, does not take its marker away.
    """
    return frozenset(
        name
        for declaring in config_class.__mro__
        for name, hint in get_annotations(declaring, eval_str=True).items()
        if marker in get_args(hint)
    )
