"""Checkpoints that are either whole or not there, and what a run needs to continue exactly."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from common.errors import UserError

MANIFEST = "manifest.json"
STATE = "training_state.pt"
LATEST = "latest"
_PARTIAL = ".partial"


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
    ) -> None:
        """Write a checkpoint beside its final name, then rename it into place.

        Raises `UserError` if it cannot be written; the checkpoints before it are untouched.
        """
        final = self._directory / f"step_{step:06d}"
        partial = final.with_name(f".{final.name}{_PARTIAL}")
        try:
            partial.mkdir(parents=True)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            torch.save({"step": step, **state}, partial / STATE)
            _write_manifest(partial)
            _sync(partial)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _replace_text(self._directory / LATEST, final.name)
            _sync(self._directory)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            before = [path.name for path in self._newest_first()]
            kept = f"{before[0]} is whole" if before else "there is none before it"
            raise UserError(
                f"{final}: cannot write the checkpoint ({_reason(error)}); {kept}; "
                "make room, then continue with --resume"
            ) from None
        for old in self._newest_first()[self._keep :] if self._keep else []:
            shutil.rmtree(old)

    def has(self, step: int) -> bool:
        return (self._directory / f"step_{step:06d}").is_dir()

    def newest_whole(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are as written; damaged ones are moved aside."""
        if self._directory.is_dir():
            for leftover in self._directory.glob(f".step_*{_PARTIAL}"):
                shutil.rmtree(leftover)
        for path in self._newest_first():
            if damage := find_damage(path):
                aside = path.with_name(f"damaged_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                say(f"checkpoint {path} is damaged ({damage}): moved to {aside.name}")
                continue
            state = torch.load(path / STATE, map_location="cpu", weights_only=True)
            return Checkpoint(path, state)
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self._directory.glob("step_*"), reverse=True)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if they are as the manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
        if _hash(file) != expected["sha256"]:
            return f"{name} is not what was written"
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


def _write_manifest(directory: Path) -> None:
    manifest = {
        file.name: {"size": file.stat().st_size, "sha256": _hash(file)}
        for file in sorted(directory.iterdir())
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replace_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}{_PARTIAL}")
    beside.write_text(text + "\n", encoding="utf-8")
    _sync(beside)
    beside.replace(path)


def _sync(path: Path) -> None:
    """Force a file, or a directory and the files in it, to the disk."""
    targets = [*path.iterdir(), path] if path.is_dir() else [path]
    for target in targets:
        if target.is_dir() and target != path:
            continue
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0]
