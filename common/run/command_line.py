"""How a train script is started, and what its user sees when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.errors import UserError
from common.run.config import ConfigType, parse_config


def run_script(main: Callable[[ConfigType], None], config_class: type[ConfigType]) -> None:
    """Parse the flags and run; a user's mistake ends in one line on stderr and exit code 2."""
    try:
        main(parse_config(config_class))
    except UserError as error:
        sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2
