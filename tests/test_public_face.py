"""What users and their scripts rely on is what tests/public_face.json says.

A change of it is deliberate: `python -m tests.test_public_face` writes the file anew, and a line in
CHANGELOG.md says what users have to know.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest

from common.training.interruption import SIGNALS, Interruption
from tests.helpers import EXPERIMENTS, REPOSITORY, load_script, run_here, train_here
from tests.test_metrics_page import documented

FILE = Path(__file__).with_name("public_face.json")
REMEDY = (
    "If that is meant: python -m tests.test_public_face, and a line in CHANGELOG.md with what a "
    "user has to know."
)
# Names and an extra that stay, whatever else changes.
KEPT_METRICS = {
    *("time/step_s", "rollouts/returns_mean", "rollouts/logprob_mismatch_max", "eval/accuracy"),
    *("training_step/loss", "training_step/grad_norm", "training_step/ratio_max"),
}
KEPT_EXTRA = "oracle"
EVERY = "every experiment"
SMALL = (
    *("--rollouts-per-step", "2", "--group-size", "2", "--train-batch-size", "4"),
    *("--max-steps", "1", "--eval-samples", "2", "--max-completion-tokens", "8"),
    *("--run-name", "run"),
)


def flags_of(experiment: str) -> dict[str, str]:
    """Flags and their defaults, as --help has them: `{"--group-size": "8"}`."""
    with patch.dict(os.environ, {"COLUMNS": "100"}):
        code, text, _ = run_here(load_script(experiment), ["--help"])
    assert code == 0
    entries: list[list[str]] = []
    for line in text.splitlines():
        if re.match(r" {1,4}--?\w", line):
            entries.append([line.strip()])
        elif line.startswith(" " * 8) and entries:
            entries[-1].append(line.strip())
    flags = {}
    for first, *others in entries:
        names = re.findall(r"(?:^|, )(--[\w-]+)", re.split(r"\s{2,}", first)[0])
        said = " ".join([first, *others]).strip()
        if default := re.search(r"\(default: (.*)\)$", said):
            # What it is if it is not given, where that depends on something.
            depends = re.search(r"Default: (.*?)\. ", said)
            name = " ".join(sorted(names))
            flags[name] = depends[1] if depends else without_breaks(default[1])
    # All but --help.
    assert len(flags) == len(entries) - 1
    return flags


def without_breaks(default: str) -> str:
    """A list, or a path without that of the repository, which may have been broken in lines."""
    if not default.startswith("/"):
        return default.replace(", ", ",")
    return default.replace(" ", "").removeprefix(f"{REPOSITORY}/".replace(" ", ""))


def all_flags() -> dict[str, dict[str, str]]:
    """Those of every experiment with the same default, and beside them those of each."""
    flags = {experiment: flags_of(experiment) for experiment in EXPERIMENTS}
    shared = set.intersection(*(set(of_one.items()) for of_one in flags.values()))
    own = {
        experiment: {
            name: default for name, default in of_one.items() if (name, default) not in shared
        }
        for experiment, of_one in flags.items()
    }
    return {EVERY: dict(sorted(shared)), **own}


def files_of_a_run() -> list[str]:
    """The README's table; that a run has these files is tested below."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = readme.partition("\n## A run on disk\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    return sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row))


def make_targets() -> list[str]:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return sorted(re.findall(r"^([\w-]+):.*##", makefile, re.M))


def exit_codes() -> dict[str, int]:
    """What ends in which: each is made to happen."""
    codes = {"a mistake in a flag": run_here(load_script("experiment_base"), ["--lr", "no"])[0]}
    for number in SIGNALS:
        with Interruption(lambda text: None) as interruption:
            signal.raise_signal(number)
            assert interruption.requested
            codes[signal.Signals(number).name] = interruption.exit_code
    with TemporaryDirectory() as root:
        flags = [*SMALL, "--no-wandb", "--no-tensorboard", "--log-dir", root]
        script = load_script("experiment_base")
        codes["the run is done"], _, _ = run_here(script, [*flags, "--run-name", "done"])
        codes["the time is up"], said, _ = run_here(script, [*flags, "--max-minutes", "1e-9"])
        assert "--resume continues" in said
    return codes


def public_face() -> dict[str, Any]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        "flags": all_flags(),
        "metrics": sorted(documented()),
        "files of a run": files_of_a_run(),
        "make": make_targets(),
        "exit codes": exit_codes(),
        "extras": sorted(project["project"]["optional-dependencies"]),
    }


def lines_of(face: Any, path: tuple[str, ...] = ()) -> set[str]:
    """One line for each thing that could be changed."""
    if isinstance(face, Mapping):
        return set().union(*(lines_of(value, (*path, name)) for name, value in face.items()))
    if isinstance(face, list):
        return {f"{', '.join(path)}: {value}" for value in face}
    return {f"{', '.join(path)}: {face}"}


@pytest.fixture(scope="module")
def face() -> dict[str, Any]:
    return public_face()


def test_the_public_face_is_as_it_is_written_down(face):
    before, now = lines_of(json.loads(FILE.read_text(encoding="utf-8"))), lines_of(face)
    changes = [f"- {line}" for line in sorted(before - now)]
    changes += [f"+ {line}" for line in sorted(now - before)]
    assert not changes, "\n".join(["the public face has changed:", *changes, REMEDY])


def test_some_names_are_kept_in_any_case(face):
    assert set(face["metrics"]) >= KEPT_METRICS
    assert KEPT_EXTRA in face["extras"]
    assert face["exit codes"] == {
        "a mistake in a flag": 2,
        "SIGINT": 130,
        "SIGTERM": 143,
        "the run is done": 0,
        "the time is up": 0,
    }


@pytest.mark.slow
def test_the_files_of_a_run_are_those_of_the_readme(tmp_path, monkeypatch):
    """Of one with all that there is; only where nothing is committed is there no source.diff."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_here(*SMALL, "--figures-interval", "1", log_dir=tmp_path)
    directory = tmp_path / "experiment_base" / "run"
    patterns = {name: name.rstrip("/").replace("<n>", "*") for name in files_of_a_run()}
    found = {name for name, pattern in patterns.items() if list(directory.glob(pattern))}
    assert found | {"source.diff"} == set(patterns)
    listed = {path for pattern in patterns.values() for path in directory.glob(pattern)}
    listed |= {path.parent for path in listed}
    assert set(directory.iterdir()) - listed == set()


if __name__ == "__main__":
    FILE.write_text(json.dumps(public_face(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(f"{FILE.relative_to(REPOSITORY)}: written; say it in CHANGELOG.md, too\n")
