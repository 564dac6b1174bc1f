"""Scripts that do a verb by hand, in experiment_base/README.md, run as they stand there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from common.tasks.math_tasks import DATA_FILE
from common.tasks.task import select_tasks, split_tasks
from common.tasks.task_file import load_tasks
from tests.helpers import REPOSITORY, read_rows
from tests.test_extending import Section

PAGE = (REPOSITORY / "experiment_base" / "README.md").read_text(encoding="utf-8")
(BY_HAND,) = re.findall(r"^## By hand\n(.*?)^## ", PAGE, re.M | re.S)
SECTIONS = [Section.of(text) for text in re.split(r"^### ", BY_HAND, flags=re.M)[1:]]


def merged(directory: Path) -> dict[str, float]:
    """All that the only step of a run logged."""
    rows = read_rows(directory / "metrics.jsonl")
    return {name: value for row in rows for name, value in row.items()}


def rewards_are_compared_with_the_mean_of_the_batch(directory: Path) -> None:
    assert directory.parent.name == "reinforce"
    rows = [r for r in read_rows(directory / "samples.jsonl") if r["split"] == "train"]
    assert len(rows) == 16
    mean = sum(row["reward"] for row in rows) / 16
    assert [row["advantage"] for row in rows] == pytest.approx([r["reward"] - mean for r in rows])
    assert len({row["reward"] for row in rows}) > 1
    logged = merged(directory)
    assert logged["training_step/grad_norm"] > 0
    assert "training_step/clip_fraction" not in logged
    assert "rollouts/kl_mean" not in logged


def short_questions_come_first_and_equal_rewards_are_left_out(directory: Path) -> None:
    assert directory.parent.name == "curriculum"
    groups: dict[str, list[float]] = defaultdict(list)
    for row in read_rows(directory / "samples.jsonl"):
        if row["split"] == "train":
            groups[row["question"]].append(row["reward"])
    assert all(len(set(rewards)) > 1 for rewards in groups.values())
    logged = merged(directory)
    assert logged["curriculum/kept"] == len(groups) / 4
    assert 0 < len(groups) < 4
    assert logged["rollouts/total_rollouts"] == 4 * len(groups)
    assert logged["curriculum/tasks"] == 512
    assert logged["perf/rollout_tokens_per_s"] > 0
    train_tasks, _ = split_tasks(select_tasks(load_tasks(DATA_FILE), max_terms=4, max_digits=1))
    lengths = sorted(len(task.question) for task in train_tasks)
    assert max(map(len, groups)) <= lengths[511] < lengths[len(lengths) // 2]


CHECKS: dict[str, Callable[[Path], None]] = {
    "A loss of one's own": rewards_are_compared_with_the_mean_of_the_batch,
    "Rollouts of one's own": short_questions_come_first_and_equal_rewards_are_left_out,
}


def test_every_script_is_checked():
    assert [section.title for section in SECTIONS] == list(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_a_script_that_does_a_verb_by_hand_runs(section, tmp_path):
    assert len(section.put_into_a_copy(tmp_path)) == 1
    CHECKS[section.title](section.run(tmp_path))
