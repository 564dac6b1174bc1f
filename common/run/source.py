"""Which sources a run is made of: a commit, and a patch that leads from it to what ran."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# Bytes of all files together that git does not know; the smallest are taken first.
MOST_UNTRACKED = 1_000_000
_TIMEOUT_SECONDS = 20
# As far as git itself looks for a zero byte.
_LOOKED_AT = 8000
# Whatever the user's configuration of git says, `git apply` is to take the patch.
_PLAIN = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
_PREFIXES = ("--src-prefix=a/", "--dst-prefix=b/")
# What `--numstat` counts of a file that has no lines.
_BINARY = "-\t-\t"


def source_state(repository: Path, passed_over: Sequence[Path]) -> tuple[str, bytes]:
    """The commit, and a patch with what is not committed; empty where git cannot tell.

    The patch has untracked files, but for what is ignored or below the directories that are passed
    over. It begins with a line, which `git apply` does not mind, for every changed file that it
    leaves out: binary ones, and untracked ones above `MOST_UNTRACKED`.
    """
    commit, patch = "", b""
    with suppress(OSError, subprocess.SubprocessError):
        commit = _git(repository, "rev-parse", "HEAD").decode().strip()
        patch = _patch(repository, passed_over)
    return commit, patch


def _patch(repository: Path, passed_over: Sequence[Path]) -> bytes:
    """Made with an index and a place for objects that are thrown away: the user's stay as they are.

    Only what is in an index is in a diff.
    """
    objects = repository / os.fsdecode(_git(repository, "rev-parse", "--git-path", "objects")[:-1])
    with TemporaryDirectory() as scratch:
        environment = {
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.absolute()),
        }

        def git(*arguments: str, stdin: bytes = b"") -> bytes:
            return _git(repository, *arguments, environment=environment, stdin=stdin)

        git("read-tree", "HEAD")
        untracked = [
            name
            for name in _names(git("ls-files", "--others", "--exclude-standard", "-z"))
            if not any(Path(repository, name).is_relative_to(place) for place in passed_over)
        ]
        taken = _texts(repository, untracked)
        added = b"".join(os.fsencode(name) + b"\0" for name in taken)
        git(
            "--literal-pathspecs",
            "add",
            "-N",
            "--pathspec-from-file=-",
            "--pathspec-file-nul",
            stdin=added,
        )
        binary = [
            line.removeprefix(_BINARY)
            for line in _names(git("diff", *_PLAIN, "--numstat", "-z", "HEAD"))
            if line.startswith(_BINARY)
        ]
        left_out = sorted({*untracked, *binary} - (set(taken) - set(binary)))
        lines = [f"left out, binary or too large: {name!a}\n".encode() for name in left_out]
        but = [f":(top,exclude,literal){name}" for name in binary]
        difference = git("diff", *_PLAIN, *_PREFIXES, "HEAD", "--", ":(top)", *but)
        return b"".join(lines) + difference


def _texts(repository: Path, names: Iterable[str]) -> list[str]:
    """The names of files of text, as many as may be taken."""
    files = {name: repository / name for name in names}
    sizes = {name: file.stat().st_size for name, file in files.items() if _is_text(file)}
    taken: list[str] = []
    total = 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        total += sizes[name]
        if total > MOST_UNTRACKED:
            break
        taken.append(name)
    return taken


def _is_text(file: Path) -> bool:
    if not file.is_file() or not os.access(file, os.R_OK):
        return False
    with file.open("rb") as stream:
        return b"\0" not in stream.read(_LOOKED_AT)


def _names(output: bytes) -> list[str]:
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def _git(
    repository: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> bytes:
    """What git prints. Raises `OSError` or `SubprocessError` if there is none, or it fails."""
    return subprocess.run(
        ["git", "-C", str(repository), *arguments],
        input=stdin,
        capture_output=True,
        timeout=_TIMEOUT_SECONDS,
        check=True,
        env={**os.environ, **(environment or {})},
    ).stdout
