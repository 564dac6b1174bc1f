"""A small command with flags of its own, and what its user sees when something is wrong."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TypeVar

import tyro
from dotenv import load_dotenv

from common.errors import UserError
from common.repository import REPOSITORY

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


# What tyro says, and the same as one line. A flag with an alias is called --alias/--flag.
_COMPLAINTS_OF_TYRO = {
    r"Missing value for argument '(?:\S+/)?(\S+)'": r"\1: needs a value; see --help",
    r"invalid choice '(.*)' for argument '(?:\S+/)?(\S+)'. Expected one of \((.*)\)": (
        r"\2 \1: must be one of \3"
    ),
    r"Error parsing (?:\S+/)?(\S+): .*int\(\).*: '(.*)'": r"\1 \2: must be a whole number",
    r"Error parsing (?:\S+/)?(\S+): .*to float: '(.*)'": r"\1 \2: must be a number",
    r"Unrecognized options: (.*)": r"\1: belongs to no flag; see --help",
}


def complaint_as_line(complaint: str) -> str:
    """tyro's framed message as one line: the flag, its value, and what is accepted."""
    text = " ".join(re.sub(r"[─│╭╮╰╯┌┐└┘━]|-{5,}", " ", complaint).split())
    message = re.split(r" (?:Argument helptext|For full helptext)", text)[0]
    for pattern, line in _COMPLAINTS_OF_TYRO.items():
        if match := re.search(pattern, message):
            return match.expand(line)
    return f"{message}; see --help"
