"""What is said of a flag where it is declared, and what follows from it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from common.errors import UserError
from common.flags.markers import FREE, OWN_CODE, ROUNDING, marked
from common.flags.parsing import parse_config
from common.flags.saved import as_json
from common.flags.spelling import as_given
from common.flags.train_config import resolve_defaults
from common.run.resume import refuse_other_numbers
from tests.helpers import REPOSITORY, load_script

EXPERIMENTS = sorted(path.parent.name for path in REPOSITORY.glob("experiment_*/train.py"))


@dataclass
class Parent:
    kept: Annotated[int, FREE] = 1
    plain: int = 1
    rounded: Annotated[int | None, ROUNDING] = None
    own: Annotated[tuple[str, ...], OWN_CODE, FREE] = ()


@dataclass
class Child(Parent):
    kept: int = 2
    added: Annotated[bool, FREE] = True


def test_a_marker_outlives_a_new_default():
    assert marked(Child, FREE) == {"kept", "own", "added"}
    assert marked(Child, ROUNDING) == {"rounded"}
    assert marked(Child, OWN_CODE) == {"own"}
    assert marked(Parent, FREE) == {"kept", "own"}


def is_refused(config, name) -> bool:
    """Whether a run whose value of one flag was another is not resumed, and the flag is named."""
    complaint = f"{as_given(name, as_json(config)[name])}: the run to resume has another value; "
    try:
        refuse_other_numbers(config, {**as_json(config), name: ["another", "value"]})
    except UserError as error:
        return complaint in str(error)
    return False


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_flag_of_every_experiment_is_marked_or_refused(experiment):
    config = resolve_defaults(load_script(experiment).Config(), bundled=True)
    names = {field.name for field in dataclasses.fields(config)}
    may_change = {name for name in names if not is_refused(config, name)}
    assert may_change == marked(type(config), FREE) | marked(type(config), ROUNDING)
    # What is learned from, and what is not, also where an experiment has a default of its own.
    assert not may_change & {
        "seed",
        "lr",
        "group_size",
        "model_name",
        "reward",
        "objective",
        "tool",
    }
    assert {"eval_interval", "eval_samples", "wandb", "max_steps", "device"} <= may_change


def test_a_flag_that_the_run_does_not_know_is_not_compared():
    config = load_script("experiment_base").Config()
    saved = as_json(config)
    del saved["group_size"]
    refuse_other_numbers(config, saved)
    with pytest.raises(UserError, match="--lr-schedule constant: the run to resume has linear"):
        refuse_other_numbers(config, {**saved, "lr_schedule": "linear"})


@pytest.mark.parametrize(
    ("flags", "saved", "complaint"),
    [
        ({"monitor_kl": False}, True, "--no-monitor-kl: the run to resume has --monitor-kl; leave"),
        ({"monitor_kl": True}, False, "--monitor-kl: the run to resume has --no-monitor-kl; leave"),
        ({"reward": ("a:f", "b:g")}, [], "--reward a:f b:g: the run to resume has none; leave"),
        ({"reward": ("a:f",)}, ["a:f", "b:g"], "--reward a:f: the run to resume has a:f b:g; "),
        ({"max_terms": 3}, None, "--max-terms 3: the run to resume has None; "),
    ],
)
def test_a_refusal_spells_flags_as_a_user_does(flags, saved, complaint):
    config = load_script("experiment_base").Config(**flags)
    with pytest.raises(UserError) as caught:
        refuse_other_numbers(config, {**as_json(config), next(iter(flags)): saved})
    assert str(caught.value).startswith(complaint)


def test_files_of_own_code_are_anchored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--reward", "mine.py:short", "mine:short", "--rubric-file", "rubric.yaml"]
    config = parse_config(load_script("experiment_base").Config, arguments)
    assert config.reward == (f"{tmp_path}/mine.py:short", "mine:short")
    assert config.rubric_file == tmp_path / "rubric.yaml"
    again = parse_config(type(config), [], defaults={"reward": config.reward})
    assert again.reward == config.reward


@pytest.mark.parametrize(
    ("value", "expected"),
    [("bm25", "bm25"), ("mine:make", "mine:make"), ("a/mine.py:make", "{here}/a/mine.py:make")],
)
def test_what_is_built_in_is_no_file(tmp_path, monkeypatch, value, expected):
    monkeypatch.chdir(tmp_path)
    config = parse_config(load_script("experiment_multiturn_qa").Config, ["--retriever", value])
    assert config.retriever == expected.replace("{here}", str(Path.cwd()))
