"""Checkpoints that are either whole or not there, and what a run needs to continue exactly."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError

from common.errors import UserError
from common.run.files import PARTIAL, beside, replace_text, sha256, sync

if TYPE_CHECKING:
    import transformers

MANIFEST = "manifest.json"
STATE = "training_state.pt"
PARTS = "parts"
LATEST = "latest"
_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: a model that transformers loads, and the state of its training."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Rollout batches done."""
        return self.state["step"]


class Checkpoints:
    """The checkpoints of a run, one directory `step_<n>` each."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep

    def save(
        self,
        step: int,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        state: dict[str, Any],
        weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write a checkpoint beside its final name, then rename it into place.

        It takes in what ranks have put into `parts(step)`. `weights` stand for the model's own.
        Raises `UserError` if it cannot be written; the checkpoints before it are untouched.
        """
        final = self._path(step)
        partial = beside(final)
        try:
            partial.mkdir(parents=True)
            model.save_pretrained(partial, state_dict=weights)
            tokenizer.save_pretrained(partial)
            _save_state({"step": step, **state}, partial / STATE)
            if (parts := self.parts(step)).is_dir():
                parts.rename(partial / PARTS)
            _write_manifest(partial)
            sync(partial)
            partial.rename(final)
            self._point_latest_to(final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(self.parts(step), ignore_errors=True)
            before = newest_first(self._directory)
            kept = f"{before[0].name} is whole" if before else "there is none before it"
            raise UserError(
                f"{final}: cannot write the checkpoint ({_reason(error)}); {kept}; "
                "make room, then continue with --resume"
            ) from None
        for old in newest_first(self._directory)[self._keep :] if self._keep else []:
            shutil.rmtree(old.rename(beside(old)))

    def parts(self, step: int) -> Path:
        """Where ranks put their parts of a checkpoint that is to be written."""
        final = self._path(step)
        return beside(final.with_name(f"{final.name}_{PARTS}"))

    def any(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(newest_first(self._directory))

    def newest_whole(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are as written; damaged ones are moved aside."""
        for leftover in self._directory.glob(f".step_*{PARTIAL}"):
            shutil.rmtree(leftover)
        for path in newest_first(self._directory):
            if damage := find_damage(path):
                aside = path.with_name(f"damaged_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                say(f"checkpoint {path} is damaged ({damage}): moved to {aside.name}")
                continue
            self._point_latest_to(path)
            return read_checkpoint(path)
        return None

    def _path(self, step: int) -> Path:
        return self._directory / f"step_{step:06d}"

    def _point_latest_to(self, path: Path) -> None:
        replace_text(self._directory / LATEST, path.name + "\n")


def read_checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(path, torch.load(path / STATE, map_location="cpu", weights_only=True))


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints in a directory, by number: the padding of their names ends at 999999."""
    steps = {path: _NAME.fullmatch(path.name) for path in directory.glob("step_*")}
    numbers = {path: int(match.group(1)) for path, match in steps.items() if match}
    return sorted(numbers, key=lambda path: numbers[path], reverse=True)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if they are as the manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, written in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (found := _describe(path / name)) != written:
            return f"{name}, {found['size']} bytes, is not what was written"
    return None


def random_state() -> dict[str, Any]:
    """The global generators, for code that draws from them; this project's own streams do not."""
    kind, words, *rest = cast(tuple, np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (kind, words.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _save_state(state: dict[str, Any], path: Path) -> None:
    """Raises the `OSError` of a full disk, which torch hides behind a `RuntimeError` of its own."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write_manifest(directory: Path) -> None:
    manifest = {
        file.relative_to(directory).as_posix(): _describe(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _describe(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0]
