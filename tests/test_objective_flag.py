"""`--objective` in every experiment: what it chooses and brings along, and what the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.flags.objective_flag import load_objective
from common.flags.train_config import resolve_defaults
from common.training.command_line import parse_flags
from tests.helpers import complain, load_script, read_rows, train_here
from tests.test_train_scripts import EXPERIMENTS

SMALL = (
    *("--max-steps", "1", "--rollouts-per-step", "2", "--group-size", "4"),
    *("--train-batch-size", "8", "--eval-samples", "0", "--warmup-fraction", "0"),
    *("--no-wandb", "--no-tensorboard", "--run-name", "r"),
)
# Rewards that always differ, so that there is something to learn.
OWN = """
from dataclasses import replace

import torch

from common.algo.variants import own_defaults, rloo


def length(completion, task):
    return float(len(completion))


@own_defaults(clip_eps=0.07)
def weightless(flags):
    return replace(rloo(flags), correction=lambda tokens: torch.zeros_like(tokens.log_probs))


def nothing(flags):
    return None
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def steps_of(directory: Path) -> list[dict[str, Any]]:
    rows = read_rows(directory / "metrics.jsonl")
    return [row for row in rows if "training_step/loss" in row]


def resolved(*flags: str) -> Any:
    config = parse_flags(load_script("experiment_base").Config, list(flags))
    return resolve_defaults(config, bundled=True)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_correction_weighs_the_loss_of_every_experiment(own, tmp_path, experiment):
    """From one file for all of them: with weights of zero no gradient is left."""
    reward = ("--reward", f"{own}:length", "--kl-weight", "0")
    for name, objective in (("with", f"{own}:weightless"), ("without", "rloo")):
        flags = (*SMALL, *reward, "--objective", objective)
        train_here(*flags, experiment=experiment, log_dir=tmp_path / name)
        (step,) = steps_of(tmp_path / name / experiment / "r")
        assert (step["training_step/grad_norm"] > 0) == (name == "without")
        assert (step["training_step/loss"] == 0) == (name == "with")


@pytest.mark.slow
def test_what_a_row_logs_of_its_own_is_logged_wherever_it_is_chosen(tmp_path):
    printed = train_here(*SMALL, "--objective", "dr_grpo", log_dir=tmp_path)
    directory = tmp_path / "experiment_base" / "r"
    names = {name for row in read_rows(directory / "metrics.jsonl") for name in row}
    moments = {"dr_grpo/advantages_variance", "dr_grpo/advantages_skewness", "dr_grpo/critic_type"}
    assert names >= {*moments, "training_step/dr_component_policy", "training_step/dr_component_kl"}
    record = json.loads((directory / "config.json").read_text())
    assert record["objective"] == "dr_grpo"
    functions = record["objective_functions"]
    assert functions["advantages"] == "within_groups(mean_centred_advantages)"
    assert functions["aggregate"] == "constant_length_mean(max_tokens=64)"
    assert printed.splitlines()[0] == f"dr_grpo: {', '.join(functions.values())}"
    script = load_script("experiment_base")
    again = ["--log-dir", str(tmp_path), "--run-name", "r", "--resume", "--max-steps", "2"]
    code, complaint = complain(script, [*again, "--objective", "grpo"])
    assert code == 2
    assert "--objective grpo: the run to resume has dr_grpo" in complaint


def test_a_row_brings_its_bounds_and_a_flag_beats_them(own):
    bounds = {
        "grpo": (0.2, None),
        "dr_grpo": (0.2, None),
        "dapo": (0.2, 0.28),
        "gspo": (3e-4, 4e-4),
        "cispo": (0.2, 0.3),
        "gspo_token": (3e-4, 4e-4),
        "gmpo": (0.4, None),
        "luspo": (2e-3, 2.5e-3),
        "dppo_tv": (0.15, None),
        "ipo": (0.3, None),
        f"{own}:weightless": (0.07, None),
    }
    for name, expected in bounds.items():
        config = resolved("--objective", name)
        assert (config.clip_eps, config.clip_eps_high) == expected
    config = resolved("--objective", "gspo", "--clip-eps", "0.1")
    assert (config.clip_eps, config.clip_eps_high) == (0.1, 4e-4)
    surrogate = load_objective(config, use_bfloat16=False).describe()["surrogate"]
    assert surrogate == "clipped_surrogate(clip_eps=0.1, clip_eps_high=0.0004)"


def test_rewards_that_are_compared_apart_take_no_kl_in_their_sum(tmp_path):
    flags = ["--log-dir", str(tmp_path), "--objective", "gdpo", "--kl-in", "reward"]
    code, said = complain(load_script("experiment_base"), [*SMALL, *flags])
    assert (code, said.count("\n")) == (2, 1)
    assert "--kl-in reward: gdpo compares rewards one by one, and a KL is none; use" in said


def test_the_numbers_of_a_paper_are_said():
    """In the first line of a run and in its `config.json`."""
    said = {
        "grpo_dual_clip": "dual_clipped_surrogate(clip_eps=0.2, clip_eps_high=0.2, dual_clip=3.0)",
        "sapo": "soft_gated_surrogate(temperature_positive=1.0, temperature_negative=1.05)",
        "dppo_tv": "divergence_masked_weight(clip_eps=0.15, clip_eps_high=0.15, max_weight=20.0)",
        "ipo": "probability_masked_ratio(clip_eps=0.3, clip_eps_high=0.3)",
        "vespo": "gamma_weight(power_positive=2.0, power_negative=3.0, rate_positive=3.0, "
        "rate_negative=2.0)",
    }
    for name, surrogate in said.items():
        objective = load_objective(resolved("--objective", name), use_bfloat16=False)
        assert objective.describe()["surrogate"] == surrogate


def test_the_share_of_tokens_that_advantages_are_kept_at_is_part_of_the_objective():
    objective = load_objective(resolved("--top-entropy", "0.2"), use_bfloat16=False)
    expected = "of_top_entropy(within_groups(group_advantages), share=0.2)"
    assert objective.describe()["advantages"] == expected
    whole = load_objective(resolved("--top-entropy", "1"), use_bfloat16=False)
    assert whole.describe()["advantages"] == "within_groups(group_advantages)"


@pytest.mark.parametrize(
    ("flags", "see_policy", "learns_at_zero"),
    [
        (("--kl-weight", "0"), False, False),
        (("--kl-weight", "0", "--correction", "opsm"), False, False),
        (("--kl-weight", "0.1"), False, True),
        (("--kl-weight", "0", "--monitor-kl"), False, True),
        (("--kl-weight", "0", "--entropy-weight", "0.1"), False, True),
        (("--kl-weight", "0.1", "--kl-in", "reward"), True, True),
        (("--kl-weight", "0", "--top-entropy", "0.5"), True, False),
        (("--kl-weight", "0", "--correction", "torch:ones_like"), False, True),
        (("--kl-weight", "0", "--objective", "{own}:weightless"), True, True),
    ],
)
def test_what_needs_no_pass_is_known_of_the_table_and_the_flags_alone(
    own, flags, see_policy, learns_at_zero
):
    config = resolved(*(flag.format(own=own) for flag in flags))
    objective = load_objective(config, use_bfloat16=False)
    assert objective.advantages_see_policy == see_policy
    assert objective.learns_at_zero == learns_at_zero


@pytest.mark.parametrize(
    ("objective", "complaint"),
    [
        ("ppo", "--objective ppo: must be one of grpo, dr_grpo, dapo, gspo, cispo, rloo, "),
        ("{own}:nothing", "nothing: returned a NoneType; return an Objective"),
        ("{own}:absent", "own.py has no function 'absent'"),
        ("missing.py:any", "missing.py:any: no such file; give its path from"),
    ],
)
def test_what_is_no_objective_is_one_line(own, tmp_path, objective, complaint):
    flags = ["--log-dir", str(tmp_path / "runs"), "--objective", objective.format(own=own)]
    code, said = complain(load_script("experiment_base"), [*SMALL, *flags])
    assert (code, said.count("\n")) == (2, 1)
    assert complaint in said
    assert not (tmp_path / "runs").exists()
