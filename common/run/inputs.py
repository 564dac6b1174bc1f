"""What a run is made of besides its flags' values: known by content, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.flags.markers import CONTENT, OWN_CODE, marked
from common.flags.spelling import as_given, flag_name
from common.flags.train_config import TrainConfig
from common.models.load import files_of_model, locate
from common.own_code import function_name, names_own_code, sources
from common.rewards.rubric import own_functions
from common.run.files import sampled_sha256, sha256, sha256_of_all


@dataclass(frozen=True)
class Input:
    """A file, a directory, or the source of a function of the user's."""

    name: str
    """That of its flag."""
    part: str
    """What tells it from others of its flag, but not its place; empty for what the flag names."""
    given: str
    """The flag as a user writes it, and the file that is meant."""
    digest: str | None
    """SHA-256 of what it holds; None for a function of a module without a file."""

    @property
    def key(self) -> str:
        return f"{flag_name(self.name)} {self.part}".rstrip()


def inputs(config: TrainConfig) -> Iterator[Input]:
    """All there are, a rubric before the functions that it names.

    Raises `UserError` for what is not there.
    """
    for name in sorted(marked(type(config), CONTENT)):
        value = config.tasks_file if name == "data_path" else getattr(config, name)
        if value is not None and (digest := _digest_of(name, value)):
            yield Input(name, "", as_given(name, value), digest)
    for name in sorted(marked(type(config), OWN_CODE)):
        value = getattr(config, name)
        for path in (value,) if isinstance(value, str) else value or ():
            if names_own_code(path):
                yield from _own_code(name, function_name(path), path)
    if config.rubric_file is not None:
        for function, path in own_functions(config.rubric_file).items():
            yield from _own_code("rubric_file", function, path)


def _own_code(name: str, function: str, path: str) -> Iterator[Input]:
    """The file of a function, and what it imports from beside it."""
    files = sources(flag_name(name), path)
    if not files:
        yield Input(name, function, as_given(name, path), None)
    for number, (below, file) in enumerate(files.items()):
        part = f"{function} imports {below}" if number else function
        given = f"{as_given(name, path)}, {below}" if number else as_given(name, path)
        yield Input(name, part, given, sha256(file))


def _digest_of(name: str, value: Path | str) -> str | None:
    """Of a file or directory; None for a model of the Hub."""
    try:
        if name == "model_name":
            return _digest_of_model(Path(locate(str(value))))
        path = Path(value)
        return sha256_of_all(path, _visible_files(path)) if path.is_dir() else sha256(path)
    except OSError as error:
        raise UserError(
            f"{as_given(name, value)}: cannot be read ({error.strerror}); give the path where it is"
        ) from None


def _digest_of_model(path: Path) -> str | None:
    # A directory was made absolute when the run began: a relative path is a Hub id.
    if not path.is_absolute():
        return None
    return sha256_of_all(path, files_of_model(path), sampled_sha256)


def _visible_files(directory: Path) -> Iterator[Path]:
    """Those below a directory, but for what programs keep there, out of sight."""
    for file in directory.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(directory).parts)
        if file.is_file() and not hidden:
            yield file
