"""Functions that a user names on the command line as `module:function`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError


def import_function(flag: str, path: str) -> Callable[..., Any]:
    """Import `module:function`, looking in the working directory first.

    Raises `UserError` naming flag and value.
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise UserError(f"{flag} {path}: not of the form module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with code_of_the_user(flag, path):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{flag} {path}: no module {error.name!r}; run from its directory or install it"
            ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{flag} {path}: {module_name} has no function {function_name!r}")
    return function


@contextmanager
def code_of_the_user(flag: str, path: str) -> Iterator[None]:
    """Whatever a user's own code raises is the user's to mend: one line that says where."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{flag} {path}: raised {what} ({frame.filename}, line {frame.lineno}); mend it"
        ) from error
