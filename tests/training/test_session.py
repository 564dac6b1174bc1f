"""What becomes of a run whose script does not go through all steps."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import REPOSITORY, load_script, numbers_of, read_rows, run_here

pytestmark = pytest.mark.slow

EXPERIMENT = "experiment_base"
FLAGS = (
    *("--rollouts-per-step", "2", "--group-size", "4", "--max-completion-tokens", "8"),
    *("--eval-samples", "2", "--eval-interval", "2", "--max-steps", "3", "--checkpoint-interval"),
    *("0", "--no-wandb", "--no-tensorboard", "--device", "cpu"),
)


def ended_in_step_2(directory: Path, how: str) -> ModuleType:
    """The train script, in which the second step ends in a statement of ours."""
    text = (REPOSITORY / EXPERIMENT / "train.py").read_text(encoding="utf-8")
    report = "            session.report(step, groups, experiences)\n"
    assert text.count(report) == 1
    end = f"            if step == 2:\n                {how}\n"
    (directory / "train.py").write_text(text.replace(report, report + end), encoding="utf-8")
    return load_script(str(directory))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return finished(load_script(EXPERIMENT), tmp_path_factory.mktemp("straight"))


def finished(script, root, *flags):
    code, _, said = run_here(script, [*FLAGS, *flags, "--log-dir", str(root), "--run-name", "r"])
    assert code == 0, said
    return root / EXPERIMENT / "r"


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").glob("step_*"))


def assert_resumed_exactly(run, root, straight):
    assert finished(load_script(EXPERIMENT), root, "--resume") == run
    expected = numbers_of(read_rows(straight / "metrics.jsonl"))
    assert numbers_of(read_rows(run / "metrics.jsonl")) == expected
    weights = "checkpoints/step_000003/model.safetensors"
    assert (run / weights).read_bytes() == (straight / weights).read_bytes()


def test_a_script_that_breaks_off_after_a_step_has_done_it(tmp_path, straight):
    run = finished(ended_in_step_2(tmp_path, "break"), tmp_path)
    assert checkpoints(run) == ["step_000002"]
    assert_resumed_exactly(run, tmp_path, straight)


def test_what_an_interruption_leaves_half_done_is_not_saved_as_the_step_before(tmp_path, straight):
    interrupt = "from common.rollout.generator import Interrupted; raise Interrupted"
    run = finished(ended_in_step_2(tmp_path, interrupt), tmp_path)
    assert checkpoints(run) == []
    assert_resumed_exactly(run, tmp_path, straight)
