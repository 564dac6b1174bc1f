"""How a train script is started, and what its user sees when something is wrong."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from common.command import read_env_file, take_any_text
from common.errors import UserError
from common.flags.parsing import parse_config
from common.flags.saved import from_json
from common.flags.train_config import ConfigType, resolve_defaults
from common.models.load import is_bundled
from common.run.directory import find_run, read_config, run_at
from common.training.dry_run import dry_run
from common.training.open_logger import check_sinks

# Seconds in which the launcher ends the other ranks once one has failed.
SECONDS_TO_BE_ENDED = 10.0
# Flags that say which run is meant, and what for: a resumed run takes them from its command line.
OF_ONE_CALL = ("chat", "dry_run", "log_dir", "question", "resume", "run_name")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_script(main: Callable[[ConfigType], None], config_class: type[ConfigType]) -> None:
    """Parse the flags and run; a user's mistake ends in one line on stderr and exit code 2."""
    take_any_text()
    try:
        read_env_file()
        config = parse_flags(config_class, sys.argv[1:])
        config = resolve_defaults(config, bundled=is_bundled(config.model_name))
        if config.chat is None:
            check_sinks(config)
        if config.dry_run:
            dry_run(main, config)
        else:
            main(config)
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        _fail(f"{error.filename or 'the disk'}: {error.strerror}; make room, then --resume", 2)
    except KeyboardInterrupt:
        _fail("aborted", 130)


def parse_flags(config_class: type[ConfigType], arguments: list[str]) -> ConfigType:
    """The flags; with `--resume` or `--chat`, those that are not given are the ones of the run."""
    config = parse_config(config_class, arguments)
    if config.chat is None and not config.resume:
        return config
    directory = run_at(config.chat) if config.chat is not None else find_run(config)
    saved = from_json(config_class, read_config(directory.config_file))
    kept = {name: value for name, value in saved.items() if name not in OF_ONE_CALL}
    return parse_config(config_class, arguments, defaults=kept)


def _fail(message: str, code: int) -> None:
    """Say what is wrong, and exit.

    Nearly all that a rank finds, all find: the first says it, and the others wait to be ended by
    the launcher. What one alone has found, it says when the wait is over.
    """
    rank = os.environ.get("RANK")
    if rank not in (None, "0"):
        with suppress(KeyboardInterrupt):
            time.sleep(SECONDS_TO_BE_ENDED)
    sys.stderr.write(f"error: {message}\n" if rank is None else f"error: rank {rank}: {message}\n")
    sys.exit(code)
