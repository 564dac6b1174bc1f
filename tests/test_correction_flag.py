"""`--correction` and its bounds: what they choose, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.flags.objective_flag import load_objective
from tests.helpers import complain, load_script
from tests.test_objective_flag import SMALL, resolved

OWN = """
from dataclasses import replace

import torch

from common.algo.variants import grpo


def halved(tokens):
    return torch.full_like(tokens.log_probs_old, 0.5)


def with_own_weights(flags):
    return replace(grpo(flags), correction=halved)


def with_the_sampler(flags):
    return replace(grpo(flags), uses_sampler=True)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def chosen(*flags: str, use_bfloat16: bool = False) -> str | None:
    objective = load_objective(resolved(*flags), use_bfloat16=use_bfloat16)
    return objective.describe().get("correction")


def test_without_a_flag_there_is_one_in_bfloat16_alone():
    assert chosen() is None
    assert chosen(use_bfloat16=True) == "token_truncated(cap=2.0)"
    assert chosen("--correction", "none", use_bfloat16=True) is None


def test_a_name_brings_bounds_and_flags_beat_them():
    assert chosen("--correction", "token_masked") == "token_masked(low=0.5, high=5.0)"
    found = chosen("--correction", "token_masked", "--correction-range", "0.25,4")
    assert found == "token_masked(low=0.25, high=4.0)"
    found = chosen("--correction", "opsm", "--correction-cap", "0.1")
    assert found == "opsm(cap=0.1)"


def test_a_flag_beats_a_correction_of_the_objectives_own(own):
    objective = ("--objective", f"{own}:with_own_weights")
    assert chosen(*objective, use_bfloat16=True) == "halved"
    assert chosen(*objective, "--correction", "none") is None
    assert chosen(*objective, "--correction", "opsm") == "opsm(cap=0.5)"


def test_one_of_the_users_own(own):
    assert chosen("--correction", f"{own}:halved") == "halved"


def test_an_objective_that_compares_with_the_sampler_itself_takes_none(own):
    objective = ("--objective", f"{own}:with_the_sampler")
    assert chosen(*objective, use_bfloat16=True) is None
    assert chosen(*objective, "--correction", "none") is None


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            "--correction tis",
            "--correction tis: must be auto, none, one of token_truncated, token_masked, "
            "sequence_truncated, sequence_masked, sequence_geometric, opsm, or module:function",
        ),
        (
            "--correction token_masked --correction-cap 3",
            "--correction-cap 3: --correction token_masked has no such bound; token_truncated, "
            "sequence_truncated, opsm have",
        ),
        (
            "--correction-range 0.5,2",
            "--correction-range 0.5,2: --correction auto has no such bound; token_masked, "
            "sequence_masked, sequence_geometric have",
        ),
        (
            "--correction token_masked --correction-range 2,0.5",
            "--correction-range 2,0.5: must be two numbers as low,high, from 0 on and rising",
        ),
        ("--correction-range 1", "--correction-range 1: must be two numbers as low,high"),
        ("--correction-range nan,2", "--correction-range nan,2: must be two numbers as low,high"),
        ("--correction opsm --correction-cap 0", "--correction-cap 0.0: must be above 0"),
        ("--correction {own}:absent", "own.py has no function 'absent'"),
        (
            "--objective {own}:with_the_sampler --correction opsm",
            "--correction opsm: --objective {own}:with_the_sampler compares with the sampler "
            "itself; leave out --correction",
        ),
    ],
)
def test_what_cannot_be_is_one_line(own, tmp_path, flags, complaint):
    given = [*SMALL, "--log-dir", str(tmp_path / "runs"), *flags.format(own=own).split()]
    code, said = complain(load_script("experiment_base"), given)
    assert (code, said.count("\n")) == (2, 1)
    assert complaint.format(own=own) in said
    assert not (tmp_path / "runs").exists()
