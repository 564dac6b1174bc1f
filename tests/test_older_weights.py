"""The study of older weights samples with the weights that it says, and with those alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from benchmarks import older_weights
from common.flags.train_config import resolve_defaults
from common.replay_buffer import experiences_from
from tests.helpers import complain, load_script, numbers_of, read_rows, run_here

pytestmark = pytest.mark.slow

LAG, STEPS = 2, 5
SMALL = {
    **{"rollouts_per_step": 2, "group_size": 2, "max_completion_tokens": 8, "max_steps": STEPS},
    **{"eval_interval": 0, "eval_samples": 2, "checkpoint_interval": 0, "device": "cpu"},
    **{"wandb": False, "tensorboard": False},
}
FLAGS = (
    *("--rollouts-per-step", "2", "--group-size", "4", "--max-completion-tokens", "8"),
    *("--train-batch-size", "4", "--warmup-fraction", "0", "--max-steps", "3"),
    *("--eval-samples", "2", "--eval-interval", "2", "--checkpoint-interval", "0"),
    *("--run-name", "r", "--no-wandb", "--no-tensorboard", "--device", "cpu"),
)


def log_probs(policy, experience) -> torch.Tensor:
    """Of a sequence alone, by a plain pass of the model without chunks, padding or cache."""
    with torch.no_grad():
        logits = policy.model(experience.token_ids[None]).logits[0, :-1]
    found = torch.log_softmax(logits, dim=-1).gather(-1, experience.token_ids[1:, None])[:, 0]
    return torch.where(experience.sampled[1:], found, 0.0)


def test_a_step_is_sampled_by_the_weights_of_steps_ago_and_scored_by_those_of_now(tmp_path):
    config = older_weights.Config(lag=LAG, log_dir=tmp_path, **SMALL)
    noise, before = torch.Generator().manual_seed(0), []
    with older_weights.open_lagging_session(resolve_defaults(config, bundled=True)) as session:
        policy = session.learner.policy
        for step in session.steps():
            before.append(deepcopy(policy))
            experiences = session.score(session.rollouts(step))
            session.learner.score(experiences)
            for parameter, kept in zip(policy.parameters(), before[-1].parameters(), strict=True):
                assert torch.equal(parameter, kept)
            for experience in experiences:
                assert experience.log_probs_old is not None
                sampler, old = experience.log_probs_sampler[1:], experience.log_probs_old[1:]
                fitting = [
                    number
                    for number, kept in enumerate(before, start=1)
                    if torch.allclose(log_probs(kept, experience), sampler, atol=1e-4)
                ]
                assert fitting == [max(1, step - LAG)]
                assert torch.allclose(log_probs(before[-1], experience), old, atol=1e-4)
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter += 0.01 * torch.randn(parameter.shape, generator=noise)
            for experience in experiences_from(session.collector.evaluate(session.held_out)):
                sampler = experience.log_probs_sampler[1:]
                assert torch.allclose(log_probs(policy, experience), sampler, atol=1e-4)


def test_without_a_lag_a_run_is_that_of_the_base_experiment(tmp_path):
    for script in (load_script("experiment_base"), older_weights):
        code, _, errors = run_here(script, [*FLAGS, "--log-dir", str(tmp_path)])
        assert code == 0, errors
    ordinary, without_lag = (
        numbers_of(read_rows(tmp_path / name / "r" / "metrics.jsonl"))
        for name in ("experiment_base", "older_weights")
    )
    assert without_lag == ordinary
    assert sum("training_step/loss" in row for row in ordinary) == 6
    code, error = complain(older_weights, ["--resume", "--log-dir", str(tmp_path)])
    assert code == 2
    assert error == "error: --resume: older weights are not saved; start the run anew\n"
