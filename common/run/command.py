"""A small command with flags of its own, and what its user sees when something is wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TypeVar

import tyro
from dotenv import load_dotenv

from common.errors import UserError
from common.run.config import complaint_as_line
from common.run.directory import REPOSITORY

Config = TypeVar("Config")


def run_command(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Parse the flags and run; a user's mistake ends in one line on stderr and exit code 2."""
    read_env_file()
    try:
        main(_parse(config_class))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def read_env_file() -> None:
    """A `.env` in the working directory, else in the repository, adds to the environment.

    What the shell has set wins.
    """
    here = Path(".env")
    load_dotenv(here if here.is_file() else REPOSITORY / ".env")


def _parse(config_class: type[Config]) -> Config:
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(config_class)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(complaint_as_line(complaint.getvalue())) from None
