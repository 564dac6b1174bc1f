"""Writes that are whole or have not happened, and that outlive a power cut."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from common.printable import all_storable

PARTIAL = ".partial"
# The file of a run with what was recorded of its model for figures.
SNAPSHOTS = "snapshots.jsonl"
# Bytes: files up to this size are known by all they hold, larger ones by samples of it.
WHOLE_UP_TO, SAMPLED_EVERY, SAMPLE = 2**26, 2**22, 2**16


def beside(path: Path) -> Path:
    """Where a file or directory is written, or taken apart, out of sight of whoever reads it."""
    return path.with_name(f".{path.name}{PARTIAL}")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part."""
    written = beside(path)
    written.write_text(text, encoding="utf-8")
    sync(written)
    written.replace(path)
    sync_entry(path.parent)


def sync(path: Path) -> None:
    """Force a file, or a directory and all below it, to the disk."""
    for target in [*path.rglob("*"), path] if path.is_dir() else [path]:
        sync_entry(target)


def sync_entry(path: Path) -> None:
    """Force one file, or the names in one directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The digest of what is in a file, of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """The digest of a file; of a large one, of its size and of 64 KiB in every 4 MiB.

    So the weights of a model are told from those of a model that was trained further, which is
    another in nearly every number, in a sixtieth of the time; a change of a few numbers is missed.
    """
    size = path.stat().st_size
    if size <= WHOLE_UP_TO:
        return sha256(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as stream:
        for start in range(0, size, SAMPLED_EVERY):
            stream.seek(start)
            digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def sha256_of_all(root: Path, files: Iterable[Path], digest: Callable[[Path], str] = sha256) -> str:
    """The digest of several files and of their names below `root`."""
    lines = (f"{file.relative_to(root).as_posix()} {digest(file)}" for file in sorted(files))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def as_line(row: Mapping[str, Any]) -> str:
    """A line of a JSONL file, of which every reader can write on what it holds."""
    return json.dumps(all_storable(row)) + "\n"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; none if there is no such file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def new_rows(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The rows that were written since; one that is not whole yet is left for the next time."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(start)
            return
        yield json.loads(line)
