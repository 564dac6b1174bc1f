"""What a parameter of a sweep may be: the distributions of W&B's sweep files that work here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool | None
# Takes the field that is wrong and what is wrong with it.
Complain = Callable[[str, str], None]

# Fields of each; `q` alone may be left out.
_DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
}
_DEFAULT_Q = 1


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    values: tuple[Value, ...]

    @property
    def grid(self) -> tuple[Value, ...] | None:
        return self.values

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`: any, or one that is a multiple of `step` above `low`."""

    low: int | float
    high: int | float
    step: int | float | None = None
    logarithmic: bool = False

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All its values; None if there is no end of them."""
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step)
        return tuple(_rounded(self.low + number * self.step) for number in range(count + 1))

    @property
    def ends(self) -> tuple[Value, ...]:
        return (self.low, self.high)


Domain = Choices | Range


def read_domain(entry: Any, complain: Complain) -> Domain | None:
    """What a parameter may be, from its entry in the file; None if there are mistakes."""
    if not isinstance(entry, dict):
        complain("", f"{entry!r} is no mapping; write {{values: [...]}} or {{min: ..., max: ...}}")
        return None
    kind = entry.get("distribution") or _usual_distribution(entry)
    if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
        complain("distribution", f"{kind!r} is unknown here; there are {', '.join(_DISTRIBUTIONS)}")
        return None
    fields = _DISTRIBUTIONS[kind]
    unknown = [field for field in map(str, entry) if field not in (*fields, "distribution")]
    missing = [field for field in fields if field not in (*entry, "q")]
    for field in unknown:
        complain(field, f"unknown field; {kind} takes {' and '.join(fields)}")
    for field in missing:
        complain(field, f"is missing; {kind} needs it")
    if unknown or missing:
        return None
    if kind == "constant":
        return _choices("value", [entry["value"]], complain)
    if kind == "categorical":
        return _choices("values", entry["values"], complain)
    return _range(kind, entry["min"], entry["max"], entry.get("q", _DEFAULT_Q), complain)


def _usual_distribution(entry: Mapping[str, Any]) -> str:
    """That which W&B takes where none is named."""
    if "value" in entry:
        return "constant"
    if "min" in entry or "max" in entry:
        whole = all(is_number(entry.get(field), int) for field in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    return "categorical"


def _choices(field: str, values: Any, complain: Complain) -> Choices | None:
    if not isinstance(values, list) or not values:
        complain(field, f"{values!r} is no list of values; give one or more")
        return None
    if wrong := [value for value in values if not isinstance(value, Value)]:
        complain(field, f"{wrong[0]!r} is no number, text, true, false or null")
        return None
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        complain(field, f"{twice[0]!r} is there twice")
        return None
    return Choices(tuple(values))


def _range(kind: str, low: Any, high: Any, q: Any, complain: Complain) -> Range | None:
    accepted, wanted = (int, "a whole number") if kind == "int_uniform" else (None, "a number")
    for field, bound in (("min", low), ("max", high), ("q", q)):
        if not is_number(bound, accepted or (int, float)):
            complain(field, f"{bound!r} is not {wanted}")
            return None
    if low > high:
        complain("min", f"{low} is above max {high}")
    elif kind == "log_uniform_values" and low <= 0:
        complain("min", f"{low} must be above 0, as its logarithm is drawn")
    elif kind == "q_uniform" and q <= 0:
        complain("q", f"{q} must be above 0")
    elif kind == "q_uniform":
        return _multiples(low, high, q, complain)
    else:
        step = 1 if kind == "int_uniform" else None
        return Range(low, high, step, logarithmic=kind == "log_uniform_values")
    return None


def _multiples(
    low: int | float, high: int | float, q: int | float, complain: Complain
) -> Range | None:
    """The multiples of q between two bounds, both included."""
    tolerance = 1e-9
    first, last = math.ceil(low / q - tolerance), math.floor(high / q + tolerance)
    if first > last:
        complain("q", f"no multiple of {q} lies between {low} and {high}")
        return None
    return Range(_rounded(first * q), _rounded(last * q), q)


def _rounded(value: int | float) -> int | float:
    """0.3 for what is 0.30000000000000004 after a multiplication."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


def is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether a value from YAML is a finite number of one of these types."""
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
