"""A small command with flags of its own, and what its user sees when something is wrong."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

import tyro

from common.errors import UserError
from common.packages import require
from common.printable import storable
from common.repository import REPOSITORY

Config = TypeVar("Config")


def take_any_text() -> None:
    """Let what cannot be read or written as text be replaced, by a mark or by its code: no print
    and no line of input ends a program, whatever the encoding of the terminal."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def refuse_unstorable(flags: Mapping[str, Any]) -> None:
    """Raise `UserError` for a flag whose value, or one of whose values, is not UTF-8."""
    for name, value in flags.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str | Path) and storable(str(part)) != str(part):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {str(part)!a}: is not UTF-8; write or name it in UTF-8")


def run_command(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Parse the flags and run; a user's mistake ends in one line on stderr and exit code 2."""
    take_any_text()
    try:
        read_env_file()
        config = _parse(config_class)
        refuse_unstorable(vars(config))
        main(config)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def read_env_file() -> None:
    """A `.env` in the working directory, else in the repository, adds to the environment.

    What the shell has set wins. Raises `UserError` for a file that is no text, or that cannot be
    read for want of a package.
    """
    here = Path(".env")
    file = here if here.is_file() else REPOSITORY / ".env"
    if not file.is_file():
        return
    require("dotenv", str(file), "remove the file")
    from dotenv import load_dotenv

    try:
        load_dotenv(file)
    except ValueError as error:
        raise UserError(f"{file}: is no UTF-8 text ({error}); save it as such") from None


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
    message = re.sub(r"(?<=Expected one of \()[^)]*", _in_order, message)
    for pattern, line in _COMPLAINTS_OF_TYRO.items():
        if match := re.search(pattern, message):
            return match.expand(line)
    return f"{message}; see --help"


def _in_order(choices: re.Match[str]) -> str:
    """Where a flag may be left open tyro has them in any order, and None among them."""
    return ", ".join(sorted({*choices[0].split(", ")} - {"'None'"}))
