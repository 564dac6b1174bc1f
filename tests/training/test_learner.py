"""What a run's optimizer steps are made from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from common.algo.objective import Extras
from common.flags.train_config import TrainConfig, resolve_defaults
from common.logger.metrics import RunStatistics
from common.logger.timer import Timer
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import ReplayBuffer
from common.training.learner import Learner, learning_rate, make_optimizer, optimizer_step
from common.training.ranks import ALONE
from tests.helpers import load_script, random_experiences, random_model, read_rows, train_here


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"


FLAGS = (
    *("--rollouts-per-step", "2", "--group-size", "4", "--max-completion-tokens", "16"),
    *("--eval-samples", "0", "--max-steps", "2", "--train-batch-size", "4", "--lr", "1e-4"),
    *("--epochs-per-step", "2", "--micro-batch-size", "3", "--run-name", "r", "--no-wandb"),
    *("--no-tensorboard", "--device", "cpu"),
)


@pytest.mark.parametrize("objective", ["grpo", "gspo"])
def test_before_its_first_update_the_policy_is_the_one_that_sampled(tmp_path, objective):
    """Two steps of four updates each: two halves of the batch, twice. Scored in micro-batches of
    other shapes, bfloat16 has other log-probs."""
    flags = (*FLAGS, "--dtype", "bfloat16", "--objective", objective)
    train_here(*flags, log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "r" / "metrics.jsonl")
    steps = [row for row in rows if "training_step/loss" in row]
    assert len(steps) == 8
    for number, row in enumerate(steps):
        is_first = number in (0, 4)
        assert (row["training_step/ratio_max"] == 1) == is_first
        assert (row["training_step/ratio_mean"] == 1) == is_first
        assert not (is_first and row["training_step/clip_fraction"])


def test_averages_that_are_kept_elsewhere_step_as_they_do_here():
    """Here that is the same place, which no number tells."""
    model = random_model(torch.float32)
    other = copy.deepcopy(model)
    config = resolve_defaults(Config(lr=1e-2, weight_decay=0.1), bundled=True)
    elsewhere = replace(config, offload="optimizer")
    optimizers = [make_optimizer(config, model), make_optimizer(elsewhere, other)]
    assert type(optimizers[1]) is not type(optimizers[0])
    for step in range(3):
        for one in (model, other):
            torch.manual_seed(step)
            for parameter in one.parameters():
                parameter.grad = torch.randn_like(parameter)
        for optimizer in optimizers:
            optimizer_step(optimizer, 1e-2, 1.0, torch.nn.utils.clip_grad_norm_)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    assert states[0]["param_groups"] == states[1]["param_groups"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
    ],
)
def test_the_learning_rate_rises_and_then_follows_the_schedule(schedule, expected):
    """Six steps, each of one optimizer step, of which two warm up."""
    flags = {"max_steps": 6, "rollouts_per_step": 2, "group_size": 4, "train_batch_size": 8}
    config = load_script("experiment_base").Config(lr=1.0, lr_schedule=schedule, **flags)
    assert [learning_rate(config, step, 2) for step in range(6)] == pytest.approx(expected)


def test_more_steps_on_resume_do_not_warm_up_again(tmp_path):
    flags = (
        *("--run-name", "one", "--lr", "3e-4", "--rollouts-per-step", "2", "--group-size", "2"),
        *("--warmup-fraction", "1", "--eval-samples", "0", "--max-completion-tokens", "4"),
        *("--no-wandb", "--no-tensorboard"),
    )
    train_here(*flags, "--max-steps", "2", log_dir=tmp_path)
    train_here("--run-name", "one", "--resume", "--max-steps", "3", log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "one" / "metrics.jsonl")
    name = "training_step/learning_rate"
    assert [row[name] for row in rows if name in row] == pytest.approx([1e-4, 2e-4, 3e-4])


@pytest.mark.parametrize(
    ("sequences", "rates"),
    [((8, 8), [4, 3, 2, 1]), ((4, 8), [4, 2, 1]), ((8, 1), [4, 3, 2]), ((6, 6), [4, 3, 2, 1])],
)
def test_a_rollout_batch_that_lacks_conversations_does_not_move_the_schedule(sequences, rates):
    """Two rollout batches of 2 x 4 sequences, in optimizer batches of 4: a linear decay from 4."""
    flags = {"rollouts_per_step": 2, "group_size": 4, "train_batch_size": 4, "max_steps": 2}
    schedule = {"lr": 4.0, "lr_schedule": "linear", "warmup_fraction": 0.0}
    config = resolve_defaults(Config(**flags, **schedule), bundled=True)
    policy = TokenLogProbs(random_model(torch.float32), temperature=1.0)
    learner = Learner(config, policy, Extras(), RunStatistics(), Timer(torch.device("cpu")), ALONE)
    found = []
    for step, count in enumerate(sequences, start=1):
        buffer = ReplayBuffer()
        buffer.extend(random_experiences(count))
        for batch in learner.optimizer_batches(step, buffer):
            batch.step(learner.optimizer)
        found += [sums.metrics()["training_step/learning_rate"] for sums in learner.steps]
    assert found == rates


def test_an_optimizer_of_before_goes_on_as_it_began():
    """Checkpoints of before hold the state of torch's plain AdamW, which rounds otherwise than the
    fused one."""
    config = resolve_defaults(Config(max_steps=1, rollouts_per_step=1, group_size=2), bundled=True)
    gradients = [torch.randn(3, 40, generator=torch.Generator().manual_seed(n)) for n in range(9)]

    def after(optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor]) -> torch.Tensor:
        (weight,) = optimizer.param_groups[0]["params"]
        for weight.grad in gradients:
            optimizer_step(optimizer, 0.01, 0.0, torch.nn.utils.clip_grad_norm_)
        return weight.detach().clone()

    layer = torch.nn.Linear(40, 3, bias=False)
    start = layer.weight.detach().clone()
    decay = {"betas": (config.adam_beta1, config.adam_beta2), "weight_decay": config.weight_decay}
    plain = torch.optim.AdamW(layer.parameters(), **decay)
    halfway, state = after(plain, gradients[:4]), copy.deepcopy(plain.state_dict())
    expected = after(plain, gradients[4:])
    layer.weight.data.copy_(halfway)
    resumed = make_optimizer(config, layer)
    resumed.load_state_dict(state)
    assert torch.equal(after(resumed, gradients[4:]), expected)
    layer.weight.data.copy_(start)
    fused = after(make_optimizer(config, layer), gradients)
    assert not torch.equal(fused, expected)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-6)


def test_dynamic_sampling_does_the_steps_that_were_planned_and_tells_of_all_that_was_drawn(
    tmp_path,
):
    flags = ("--dynamic-sampling", "3", "--epochs-per-step", "1", "--lr-schedule", "linear")
    train_here(*FLAGS, *flags, "--warmup-fraction", "0", log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "r" / "metrics.jsonl")
    rates = [row["training_step/learning_rate"] for row in rows if "training_step/loss" in row]
    assert rates == [pytest.approx(1e-4 * share) for share in (1, 3 / 4, 1 / 2, 1 / 4)]
    batches = [row for row in rows if "rollouts/returns_mean" in row]
    assert [row["kept/total_rollouts"] for row in batches] == [8, 8]
    assert [row["system/replay_buffer_size"] for row in batches] == [8, 8]
    assert {row["rollouts/total_rollouts"] for row in batches} <= {8, 16, 24}
    for row in batches:
        drawn = row["rollouts/total_rollouts"]
        assert row["rollouts/returns_sum"] == pytest.approx(drawn * row["rewards/total_mean"])
        solved = drawn / 4 * row["rollouts/solved_some"]
        assert row["kept/solved_some"] == pytest.approx(min(solved, 2) / 2)
    (final,) = [row for row in rows if "final/total_rollouts" in row]
    assert final["final/total_rollouts"] == sum(row["rollouts/total_rollouts"] for row in batches)
