"""Flags as a user writes them."""

from __future__ import annotations


def flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def as_given(name: str, value: object) -> str:
    """A flag with its value: `--group-size 8`, `--no-wandb`, `--tool a:f b:g`."""
    if isinstance(value, bool):
        return flag_name(name) if value else flag_name(f"no_{name}")
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([flag_name(name), *map(str, values)])
