"""Functions that a user names on the command line as `module:function` or `file.py:function`.

Classes and other callables count as functions.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from common.errors import UserError
from common.imports_beside import imported_files
from common.printable import error_as_line, printable


def names_own_code(value: str) -> bool:
    """Whether a flag's value names a user's own function, not something that is built in."""
    return ":" in value


def function_name(path: str) -> str:
    """The function's part of `module:function` or `file.py:function`."""
    return path.rpartition(":")[2]


def anchored(path: str, directory: Path) -> str:
    """`file.py:function` as an absolute path, found from `directory`; anything else as it is."""
    source, _, function = path.rpartition(":")
    return f"{directory / source}:{function}" if _is_file(source) else path


def import_function(flag: str, path: str) -> Callable[..., Any]:
    """Import `module:function` or `file.py:function`, looking in the working directory first.

    Raises `UserError` naming flag and value.
    """
    module = _import_module(flag, path)
    function = getattr(module, function_name(path), None)
    if not callable(function):
        source = path.rpartition(":")[0]
        raise UserError(f"{flag} {path}: {source} has no function {function_name(path)!r}")
    return function


def sources(flag: str, path: str) -> dict[str, Path]:
    """The file that a function is named in, and what it imports from beside it, and these in turn.

    Each by its path from where Python finds it, the function's own first. A module without a file
    has none. Raises `UserError` as `import_function` does.
    """
    module = _import_module(flag, path)
    if getattr(module, "__file__", None) is None:
        return {}
    file = Path(str(module.__file__)).resolve()
    is_module = not _is_file(path.rpartition(":")[0])
    depth = is_module and module.__name__.count(".") + (file.name == "__init__.py")
    root = file.parents[depth]
    with code_of_the_user(flag, path):
        files = [file, *imported_files(file, root)]
    return {str(source.relative_to(root)): source for source in files}


@contextmanager
def code_of_the_user(flag: str, path: str) -> Iterator[None]:
    """Whatever a user's own code raises is the user's to mend: one line that says where."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{flag} {path}: {complaint_about(error)}; mend it") from error


def complaint_about(error: BaseException) -> str:
    """What a user's own code raised, and where, fit for a terminal."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next(
        (frame for frame in reversed(frames) if _is_of_the_user(frame.filename)), frames[-1]
    )
    file, line = frame.filename, frame.lineno
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    return f"raised {printable(error_as_line(error))} ({file}, line {line})"


def _is_of_the_user(filename: str) -> bool:
    """Whether code is neither Python's own, nor installed, nor ours."""
    others = [*map(Path, sysconfig.get_paths().values()), Path(__file__).parent]
    return not filename.startswith("<") and not any(
        Path(filename).is_relative_to(directory) for directory in others
    )


def _is_file(source: str) -> bool:
    return source.endswith(".py")


def _import_module(flag: str, path: str) -> ModuleType:
    source, _, function = path.rpartition(":")
    if not source or not function:
        raise UserError(f"{flag} {path}: not of the form module:function or file.py:function")
    with code_of_the_user(flag, path):
        try:
            if _is_file(source):
                return _import_file(flag, path, Path.cwd() / source)
            _look_in(Path.cwd())
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{flag} {path}: no module {error.name!r}; run from its directory or install it"
            ) from None


def _import_file(flag: str, path: str, file: Path) -> ModuleType:
    """Import a file as Python runs a script: what lies beside it can be imported.

    Its name as a module is its path, since another module may have that of the file.
    """
    if not file.is_file():
        raise UserError(f"{flag} {path}: no such file; give its path from {Path.cwd()}")
    name = str(file.resolve())
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    _look_in(file.parent)
    with ExitStack() as undo:
        sys.modules[name] = module
        undo.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


def _look_in(directory: Path) -> None:
    """Let modules of a directory be imported, before any others of their names."""
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
