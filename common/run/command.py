"""A small command with flags of its own, and what its user sees when something is wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

from common.errors import UserError
from common.run.config import complaint_as_line

Config = TypeVar("Config")


def run_command(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Parse the flags and run; a user's mistake ends in one line on stderr and exit code 2."""
    try:
        main(_parse(config_class))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _parse(config_class: type[Config]) -> Config:
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(config_class)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(complaint_as_line(complaint.getvalue())) from None
