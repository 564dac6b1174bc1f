"""`--correction` and its bounds: what they choose, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.flags.objective_flag import load_objective
from tests.helpers import EXPERIMENTS, complain, load_script, read_rows, train_here
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


def test_where_the_sampler_stands_for_the_old_policy_there_is_nothing_to_correct():
    sampler = ("--old-log-probs", "sampler")
    assert chosen(*sampler, use_bfloat16=True) is None
    assert chosen(*sampler, "--correction", "none") is None
    assert chosen(*sampler, "--correction", "opsm") == "opsm(cap=0.5)"


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
        (
            "--correction token_masked --correction-range 1.1,2",
            "--correction-range 1.1,2: drops the weight 1, that of a token on which sampler and "
            "policy agree; give one around it, such as 0.5,5",
        ),
        ("--correction sequence_masked --correction-range 0,0.9", "0,0.9: drops the weight 1"),
        ("--correction-range 1", "--correction-range 1: must be two numbers as low,high"),
        ("--correction-range nan,2", "--correction-range nan,2: must be two numbers as low,high"),
        (
            "--correction token_truncated --correction-cap 0.9",
            "--correction-cap 0.9: cuts the weight 1, that of a token on which sampler and policy "
            "agree; give 1 or more, such as 2",
        ),
        ("--correction opsm --correction-cap 0", "--correction-cap 0.0: must be above 0"),
        (
            "--old-log-probs sampler --correction token_masked",
            "--correction token_masked: there is nothing to correct where --old-log-probs sampler "
            "compares the policy with the sampler; leave out one of the two flags",
        ),
        (
            "--old-log-probs sampler --top-entropy 0.2",
            "--top-entropy 0.2: the entropy comes of the pass that --old-log-probs sampler leaves "
            "out; leave out one of the two flags",
        ),
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


def first_rows(*flags: str, log_dir: Path, experiment: str = "experiment_base") -> dict[str, float]:
    """What the first optimizer step and the first batch of a run have logged."""
    train_here(*SMALL, *flags, experiment=experiment, log_dir=log_dir)
    rows = read_rows(log_dir / experiment / "r" / "metrics.jsonl")
    (step,) = (row for row in rows if "training_step/loss" in row)
    (batch,) = (row for row in rows if "rollouts/returns_mean" in row)
    return {**batch, **step}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_with_the_samplers_log_probs_the_first_ratio_is_to_the_sampler(tmp_path, experiment):
    """In bfloat16 it is not 1; nothing is said of a learner's pass that there has not been."""
    flags = ("--old-log-probs", "sampler", "--dtype", "bfloat16")
    logged = first_rows(*flags, log_dir=tmp_path, experiment=experiment)
    assert 1 < logged["training_step/ratio_max"] < 2
    assert not [name for name in logged if "mismatch" in name]
    assert "rollouts/entropy_mean" not in logged
    assert logged["training_step/entropy"] > 0


@pytest.mark.slow
def test_in_float32_it_makes_no_difference_whose_log_probs_they_are(tmp_path):
    logged = [
        first_rows("--old-log-probs", whose, "--temperature", "0.8", log_dir=tmp_path / whose)
        for whose in ("learner", "sampler")
    ]
    for name in ("loss", "grad_norm", "kl", "entropy", "ratio_max"):
        by_learner, by_sampler = (row[f"training_step/{name}"] for row in logged)
        assert by_sampler == pytest.approx(by_learner, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_what_a_correction_does_is_logged_and_learned_from(tmp_path, own):
    """A weight of one half on each token halves the gradient."""
    kept = ("--kl-weight", "0", "--max-grad-norm", "0", "--correction")
    whole = first_rows(*kept, "none", log_dir=tmp_path / "whole")
    half = first_rows(*kept, f"{own}:halved", log_dir=tmp_path / "half")
    norm = "training_step/grad_norm"
    assert half[norm] == pytest.approx(whole[norm] / 2)
    assert not [name for name in whole if name.startswith("correction/")]
    assert {name: value for name, value in half.items() if name.startswith("correction/")} == {
        "correction/weight_mean": 0.5,
        "correction/weight_max": 0.5,
        "correction/dropped_fraction": 0.0,
        "correction/effective_sample_size": 1.0,
    }
