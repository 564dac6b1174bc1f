"""What a Python file imports from beside it, found by reading, not by running it."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_OURS = Path(__file__).resolve().parent


def imported_files(file: Path, root: Path) -> list[Path]:
    """The files below `root` that a file imports, whenever it does, and those that these import.

    `root` is the directory in which Python finds them. What is installed is not looked into, and
    neither is `common`. Raises `SyntaxError`.
    """
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    found = {file: None}
    waiting = [] if root in installed or file.suffix != ".py" else [file]
    while waiting:
        current = waiting.pop()
        new = [path for path in dict.fromkeys(_imports(current, root)) if path not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return sorted(found.keys() - {file})


def _imports(file: Path, root: Path) -> Iterator[Path]:
    """The files that one file may import from below `root`, packages on the way included."""
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(root, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else root
            for alias in node.names:
                yield from _files_of(start, ".".join(filter(None, (node.module, alias.name))))


def _files_of(start: Path, module: str) -> Iterator[Path]:
    """The files of `a.b.c`: those of a, of a.b and of a.b.c, as far as they are there."""
    place = start
    if place == _OURS.parent and module.split(".")[0] == _OURS.name:
        return
    for name in module.split("."):
        place = place / name
        for path in (place / "__init__.py", place.with_name(f"{name}.py")):
            if path.is_file():
                yield path
