"""docs/extending.md is true: what a section shows is put into a copy of the repository and runs."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, read_rows

COPIED = ("common", "data", "docs", "experiment_base", "pyproject.toml")
# One step of few completions, all of them written down.
SMALL = (
    *("--max-steps", "1", "--rollouts-per-step", "4", "--group-size", "4", "--eval-samples", "4"),
    *("--log-completions-interval", "1", "--no-wandb", "--no-tensorboard", "--run-name", "run"),
)


@dataclass(frozen=True)
class Section:
    """What is added, and the command that shows it."""

    title: str
    new_files: dict[str, str]
    diffs: list[str]
    command: str

    @classmethod
    def of(cls, text: str) -> Section:
        title = text.partition("\n")[0]
        blocks = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", text, re.M | re.S)
        (command,) = (body for kind, _, body in blocks if kind == "sh")
        new_files = {path: body for kind, path, body in blocks if kind == "python" and path}
        return cls(title, new_files, [b for kind, _, b in blocks if kind == "diff"], command)

    def apply(self, root: Path) -> set[str]:
        """Put it into a copy of the repository; which files that makes or changes."""
        for path, text in self.new_files.items():
            assert not (root / path).exists(), path
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        for diff in self.diffs:
            # Git would look for a repository above the copy, and pass over what is not in it.
            alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
            command = ["git", "apply", "--verbose", "-"]
            applied = subprocess.run(
                command,
                cwd=root,
                env=alone,
                input=diff,
                text=True,
                capture_output=True,
                check=False,
            )
            assert applied.returncode == 0, f"{self.title}: {applied.stderr}"
        edited = re.findall(r"^\+\+\+ b/(.+)$", "".join(self.diffs), re.M)
        return {*self.new_files, *edited}

    def put_into_a_copy(self, root: Path) -> set[str]:
        """Copy the repository, apply, and lint; which files that makes or changes."""
        for name in COPIED:
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, root / name)
        files = self.apply(root)
        code = [file for file in files if file.endswith(".py")]
        for wanted in (["check"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *wanted, "--no-cache", *code]
            done = subprocess.run(ruff, cwd=root, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
        return files

    def run(self, root: Path) -> Path:
        """Run the command, in small; the directory of the run."""
        moved, folder, then, python, script, *flags = shlex.split(self.command)
        assert (moved, then, python) == ("cd", "&&", "python")
        small = [sys.executable, script, *flags, *SMALL, "--log-dir", str(root / "runs")]
        here = {**os.environ, "PYTHONPATH": str(root)}
        run = subprocess.run(
            small, cwd=root / folder, env=here, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        (directory,) = (root / "runs").glob("*/run")
        return directory


PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = [Section.of(text) for text in re.split(r"^## ", PAGE, flags=re.M)[1:]]


def the_csv_has_the_numbers_of_the_rows(directory: Path) -> None:
    axes = {"rollouts/batch_step", "training_step/global_step"}
    expected: dict[tuple[str, str, str], list[float | None]] = defaultdict(list)
    for row in read_rows(directory / "metrics.jsonl"):
        (axis,) = axes & row.keys()
        for name in row.keys() - axes:
            if not isinstance(row[name], str | dict):
                expected[axis, str(row[axis]), name].append(row[name])
    found: dict[tuple[str, str, str], list[float | None]] = defaultdict(list)
    with (directory / "metrics.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            value = float(line["value"])
            key = line["axis"], line["step"], line["name"]
            found[key].append(value if math.isfinite(value) else None)
    assert found == expected
    assert len(found) > 80


def lengths_are_compared(directory: Path) -> None:
    groups: dict[str, list[int]] = defaultdict(list)
    for row in read_rows(directory / "samples.jsonl"):
        if row["split"] == "train":
            groups[row["question"]].append(row["completion_tokens"])
    assert [len(group) for group in groups.values()] == [4] * 4
    spreads = [max(group) - min(group) for group in groups.values()]
    assert any(spreads)
    rows = read_rows(directory / "metrics.jsonl")
    (found,) = (row[name] for row in rows if (name := "rollouts/length_spread") in row)
    assert found == sum(spreads) / 4
    page = directory.parents[2] / "docs" / "metrics.md"
    assert "| `rollouts/length_spread` | tokens | batch |" in page.read_text(encoding="utf-8")


def a_loss_that_clips_nothing_is_learned_from(directory: Path) -> None:
    record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert "--objective topr" in record["inputs"]
    assert record["objective"].endswith("experiment_base/topr.py:topr")
    assert record["objective_functions"]["surrogate"] == "tapered_weight"
    steps = [r for r in read_rows(directory / "metrics.jsonl") if "training_step/loss" in r]
    assert steps
    assert all(row["training_step/grad_norm"] > 0 for row in steps)
    assert not any("training_step/clip_fraction" in row for row in steps)


def tokens_have_weights(directory: Path) -> None:
    record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert record["objective_functions"]["correction"] == "tempered"
    assert record["objective_functions"]["aggregate"] == "sequence_mean"


# Per section how many files it may touch, and what must be true of the run that it shows.
CHECKS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "A loss of your own": (1, a_loss_that_clips_nothing_is_learned_from),
    "A weight between sampler and learner": (1, tokens_have_weights),
    "A sink behind a flag": (3, the_csv_has_the_numbers_of_the_rows),
    "A metric": (2, lengths_are_compared),
}


def test_a_loss_takes_at_most_twenty_lines():
    (loss,) = SECTIONS[0].new_files.values()
    assert len([line for line in loss.splitlines() if line.strip()]) <= 20


def test_every_section_is_checked():
    assert [section.title for section in SECTIONS] == list(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_what_a_section_shows_takes_few_files_and_works(section, tmp_path):
    most_files, check = CHECKS[section.title]
    assert len(section.put_into_a_copy(tmp_path)) <= most_files
    check(section.run(tmp_path))
