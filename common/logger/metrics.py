"""What is measured: rows of `{name: number}` from what happened in a step.

The names are one vocabulary for all experiments. What does not apply to a run is absent, never 0.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from common.logger.experience_sums import ExperienceSums
from common.logger.media import Table
from common.models.token_tree import TokenCounts
from common.replay_buffer import ExperienceBatch
from common.rollout.trajectory import Group, Rollout

Metrics = dict[str, float]

RECENT_BATCHES = 10

# What a reward cannot be called, as its metrics would have the names of others.
TAKEN_BY_METRICS = frozenset({"total", "returns", "completion_tokens", "turns"})


def is_criterion(name: str) -> bool:
    """Whether a score is a part of a rubric's, `criteria/{rubric}/{criterion}`."""
    return name.startswith("criteria/")


def reward_metric_names(name: str) -> list[str]:
    """The metrics of a reward function."""
    return [
        *(f"rewards/{name}_{of}" for of in ("mean", "max", "min", "recent_mean", "hist")),
        f"eval/{name}_mean",
        *(f"final/{name}_{of}" for of in ("mean", "std", "max", "min", "total_samples")),
    ]


def scores_by_name(rollouts: Iterable[Rollout]) -> dict[str, np.ndarray]:
    """What each reward function gave where it applies; nothing for one that applies nowhere."""
    scores: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, score in rollout.scores.items():
            if score is not None:
                scores.setdefault(name, []).append(score)
    return {name: np.array(values) for name, values in scores.items()}


def rollout_metrics(groups: Sequence[Group]) -> Metrics:
    """`rollouts/*` of one batch, from all groups that were drawn."""
    errored = [rollout for group in groups for rollout in group.errored]
    kept = [group for group in groups if group.rollouts]
    dropped, groups = len(groups) - len(kept), kept
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    returns = np.array([rollout.reward for rollout in rollouts])
    advantages = np.array([advantage for group in groups for advantage in group.advantages])
    lengths = np.array([rollout.trajectory.num_sampled for rollout in rollouts])
    correct = np.array([rollout.correct for rollout in rollouts])
    solved = np.array([sum(r.correct for r in group.rollouts) for group in groups])
    sizes = np.array([len(group.rollouts) for group in groups])
    metrics = {
        "returns_sum": returns.sum(),
        "returns_mean": returns.mean(),
        "returns_std": returns.std(),
        "returns_max": returns.max(),
        "returns_min": returns.min(),
        "returns_median": np.median(returns),
        "returns_q25": np.quantile(returns, 0.25),
        "returns_q75": np.quantile(returns, 0.75),
        "returns_best_mean": np.mean([max(group.rewards) for group in groups]),
        "advantages_mean": advantages.mean(),
        "advantages_std": advantages.std(),
        "total_rollouts": len(rollouts),
        "errors": len(errored),
        "reward_errors": sum(rollout.failure is not None for rollout in (*rollouts, *errored)),
        "dropped_groups": dropped,
        "completion_tokens_mean": lengths.mean(),
        "completion_tokens_min": lengths.min(),
        "completion_tokens_max": lengths.max(),
        "truncated_fraction": np.mean([r.trajectory.truncated for r in rollouts]),
        "solved_none": np.mean(solved == 0),
        "solved_some": np.mean((solved > 0) & (solved < sizes)),
        "solved_all": np.mean(solved == sizes),
        "zero_variance_fraction": np.mean([not group.has_signal for group in groups]),
    }
    if correct.any():
        metrics["completion_tokens_correct_mean"] = lengths[correct].mean()
    if not correct.all():
        metrics["completion_tokens_incorrect_mean"] = lengths[~correct].mean()
    return {f"rollouts/{name}": float(value) for name, value in metrics.items()}


def kept_metrics(groups: Sequence[Group]) -> Metrics:
    """`kept/*` of the groups that are learned from, where more were drawn."""
    metrics = rollout_metrics(groups)
    correct = [rollout.correct for group in groups for rollout in group.rollouts]
    return {
        **{f"kept/{name}": metrics[f"rollouts/{name}"] for name in _OF_KEPT},
        "kept/correctness_rate": statistics.fmean(correct),
    }


_OF_KEPT = (
    *("total_rollouts", "returns_mean", "returns_std", "completion_tokens_mean"),
    *("truncated_fraction", "solved_some", "zero_variance_fraction"),
)


@dataclass
class RunningScores:
    """Scores of one reward function over a run: enough for recent means and the final table."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_BATCHES))
    count: int = 0
    total: float = 0.0
    total_squared: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, scores: np.ndarray) -> None:
        self.recent.append(float(scores.mean()))
        self.count += len(scores)
        self.total += float(scores.sum())
        self.total_squared += float((scores**2).sum())
        self.lowest = min(self.lowest, float(scores.min()))
        self.highest = max(self.highest, float(scores.max()))

    def final(self) -> Metrics:
        mean = self.total / self.count
        return {
            "mean": mean,
            "std": math.sqrt(max(0.0, self.total_squared / self.count - mean**2)),
            "max": self.highest,
            "min": self.lowest,
            "total_samples": float(self.count),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.recent = deque(state["recent"], maxlen=RECENT_BATCHES)


class RunStatistics:
    """What a run remembers from batch to batch: per-reward statistics, totals and the best mean."""

    def __init__(self) -> None:
        self.scores: dict[str, RunningScores] = {}
        self.total_rollouts = 0
        self.total_batches = 0
        self.best_mean_return = -math.inf
        self.final_reward: float | None = None
        self.invalid_losses = 0
        self.invalid_in_a_row = 0

    def add_batch(self, groups: Sequence[Group]) -> Metrics:
        """Remember a batch as it was drawn; returns its `rewards/*` and `criteria/*`, and how
        many optimizer steps were skipped so far."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        metrics: Metrics = {}
        for name, scores in scores_by_name(rollouts).items():
            running = self.scores.setdefault(name, RunningScores())
            running.add(scores)
            if is_criterion(name):
                metrics[f"{name}_mean"] = float(scores.mean())
                continue
            metrics |= {
                f"rewards/{name}_mean": float(scores.mean()),
                f"rewards/{name}_max": float(scores.max()),
                f"rewards/{name}_min": float(scores.min()),
                f"rewards/{name}_recent_mean": statistics.fmean(running.recent),
            }
        mean_return = statistics.fmean(rollout.reward for rollout in rollouts)
        self.total_rollouts += len(rollouts)
        self.total_batches += 1
        self.best_mean_return = max(self.best_mean_return, mean_return)
        metrics["rewards/total_mean"] = mean_return
        metrics["training/invalid_loss_count"] = float(self.invalid_losses)
        metrics["rewards/correctness_rate"] = statistics.fmean(r.correct for r in rollouts)
        return metrics

    def add_evaluation(self, groups: Sequence[Group], *, tags: bool) -> Metrics:
        """Remember the mean return on held-out tasks; returns their `eval/*`."""
        metrics = evaluation_metrics(groups, tags=tags)
        self.final_reward = metrics["eval/returns_mean"]
        return metrics

    def count_step(self, grad_norm: float) -> bool:
        """Whether the gradient was finite; counts it if it was not."""
        valid = math.isfinite(grad_norm)
        self.invalid_in_a_row = 0 if valid else self.invalid_in_a_row + 1
        self.invalid_losses += not valid
        return valid

    def final(self, total_steps: int) -> Metrics:
        metrics = {
            "training/completed": 1.0,
            "final/total_steps": float(total_steps),
            "final/total_batches": float(self.total_batches),
            "final/total_rollouts": float(self.total_rollouts),
        }
        if self.final_reward is not None:
            metrics["final_reward"] = self.final_reward
        if self.total_batches:
            metrics["final/best_mean_return"] = self.best_mean_return
            for name, running in self.scores.items():
                if not is_criterion(name):
                    values = running.final().items()
                    metrics |= {f"final/{name}_{key}": value for key, value in values}
        return metrics

    def criteria_summary(self) -> dict[str, Table]:
        """What a rubric's criteria scored over the run, as a table; nothing without a rubric."""
        rows = [
            [name.removeprefix("criteria/"), *running.final().values()]
            for name, running in self.scores.items()
            if is_criterion(name)
        ]
        columns = ["criterion", "mean", "std", "max", "min", "samples"]
        return {"rubric_criteria_summary": Table(columns, rows)} if rows else {}

    def state_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "scores": {name: running.state_dict() for name, running in self.scores.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        scores = state["scores"]
        vars(self).update({name: value for name, value in state.items() if name != "scores"})
        for name, values in scores.items():
            self.scores[name] = RunningScores()
            self.scores[name].load_state_dict(values)


@dataclass(frozen=True)
class WeightSums:
    """The weights that a correction gave to sampled tokens, added up."""

    total: Tensor
    squared: Tensor
    largest: Tensor
    dropped: Tensor
    """How many have weight 0."""

    @classmethod
    def of(
        cls, weights: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
    ) -> WeightSums:
        sampled = torch.where(mask, weights, 0.0)
        return cls(
            sampled.sum(),
            sampled.square().sum(),
            weights.masked_fill(~mask, -math.inf).max(),
            (mask & (weights == 0)).sum(),
        )

    def plus(self, other: WeightSums) -> WeightSums:
        return WeightSums(
            self.total + other.total,
            self.squared + other.squared,
            torch.maximum(self.largest, other.largest),
            self.dropped + other.dropped,
        )

    def cpu(self) -> WeightSums:
        return WeightSums(*(value.cpu() for value in vars(self).values()))

    def metrics(self, tokens: float) -> Metrics:
        """`correction/*`, of so many sampled tokens.

        The effective sample size, total^2 / squared (Kish, 1965), is a share of them: 1 if all
        weigh the same, and at most what is not dropped.
        """
        total, squared = float(self.total), float(self.squared)
        return {
            "correction/weight_mean": total / tokens,
            "correction/weight_max": float(self.largest),
            "correction/dropped_fraction": float(self.dropped) / tokens,
            "correction/effective_sample_size": total**2 / squared / tokens if squared else 0.0,
        }


class StepSums:
    """Adds up the micro-batches of one optimizer step and gives its `training_step/*`, and its
    `correction/*` if it has a correction."""

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0
        self._components: dict[str, Tensor] = {}
        self._scored: Tensor | float = 0.0
        self._ratio_max: Tensor | None = None
        self._token_sums: dict[str, Tensor] = {}
        self._weights: WeightSums | None = None
        self._outcome: Metrics = {}
        self.counts = TokenCounts()
        """What went through the policy."""

    @torch.no_grad()
    def add(
        self,
        loss: Float[Tensor, ""],
        batch: ExperienceBatch,
        ratio: Float[Tensor, "batch time"],
        **per_token: Num[Tensor, "batch time"] | Bool[Tensor, "batch time"],
    ) -> None:
        """Take in a micro-batch: its share of the loss, and per-token values to be averaged."""
        mask = batch.sampled
        self._loss = self._loss + loss
        self._scored = self._scored + mask.sum()
        self._add_ratio_max(ratio.masked_fill(~mask, -math.inf).max())
        for name, values in {**per_token, "ratio_mean": ratio}.items():
            total = torch.where(mask, values, 0).sum()
            self._token_sums[name] = self._token_sums.get(name, torch.zeros_like(total)) + total

    @torch.no_grad()
    def add_components(self, **components: Float[Tensor, ""]) -> None:
        """Take in parts of a micro-batch's loss, to be logged apart from their sum."""
        for name, value in components.items():
            total = self._components.get(name, torch.zeros_like(value))
            self._components[name] = total + value

    @torch.no_grad()
    def add_weights(
        self, weights: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
    ) -> None:
        """Take in what a correction gave to the tokens of a micro-batch."""
        self._add_weights(WeightSums.of(weights, mask))

    def _add_weights(self, sums: WeightSums) -> None:
        self._weights = self._weights.plus(sums) if self._weights else sums

    def _add_ratio_max(self, largest: Tensor) -> None:
        before = self._ratio_max
        self._ratio_max = largest if before is None else torch.maximum(before, largest)

    @property
    def learned(self) -> float:
        """How many tokens the loss was made of."""
        return float(self._scored)

    @classmethod
    def merged(cls, parts: Sequence[StepSums]) -> StepSums:
        """The sums of an optimizer step whose batch was split, each part into its own."""
        merged = cls()
        for part in parts:
            merged._loss = merged._loss + part._loss
            merged._scored = merged._scored + part._scored
            if part._ratio_max is not None:
                merged._add_ratio_max(part._ratio_max)
            merged.add_components(**part._components)
            for name, total in part._token_sums.items():
                before = merged._token_sums.get(name, torch.zeros_like(total))
                merged._token_sums[name] = before + total
            if part._weights:
                merged._add_weights(part._weights)
            merged.counts = merged.counts.plus(part.counts)
        return merged

    def cpu(self) -> StepSums:
        """The same with its tensors on the CPU, where another process can read them."""
        copied = StepSums.merged([self])
        copied._loss = float(self._loss)
        copied._scored = float(self._scored)
        copied._ratio_max = None if self._ratio_max is None else self._ratio_max.cpu()
        copied._components = {name: total.cpu() for name, total in self._components.items()}
        copied._token_sums = {name: total.cpu() for name, total in self._token_sums.items()}
        copied._weights = self._weights and self._weights.cpu()
        return copied

    def finish(self, grad_norm: float, learning_rate: float) -> None:
        """Record what the optimizer did with the sum."""
        self._outcome = {"grad_norm": grad_norm, "learning_rate": learning_rate}

    def metrics(self) -> Metrics:
        """Means over the step's sampled tokens; a step without any has a loss and nothing else."""
        metrics = {"loss": float(self._loss), **self._outcome}
        metrics |= {name: float(total) for name, total in self._components.items()}
        if scored := self.learned:
            metrics |= {name: float(total) / scored for name, total in self._token_sums.items()}
            metrics["ratio_max"] = math.nan if self._ratio_max is None else float(self._ratio_max)
        named = {f"training_step/{name}": value for name, value in metrics.items()}
        return named | (self._weights.metrics(scored) if self._weights and scored else {})


def epoch_metrics(steps: Sequence[StepSums]) -> Metrics:
    """`training_epoch/*` of one pass over the buffer."""
    rows = [step.metrics() for step in steps]

    def column(name: str) -> list[float]:
        values = [row.get(f"training_step/{name}", math.nan) for row in rows]
        return [value for value in values if math.isfinite(value)]

    metrics: Metrics = {"training_epoch/steps_per_epoch": float(len(steps))}
    for name in ("loss", "kl"):
        if values := column(name):
            metrics[f"training_epoch/{name}_mean"] = statistics.fmean(values)
            metrics[f"training_epoch/{name}_std"] = statistics.pstdev(values)
    if norms := column("grad_norm"):
        metrics["training_epoch/grad_norm_mean"] = statistics.fmean(norms)
        metrics["training_epoch/grad_norm_max"] = max(norms)
    return metrics


def evaluation_metrics(groups: Sequence[Group], *, tags: bool) -> Metrics:
    """`eval/*` of held-out tasks; those of answer tags where `tags` are what an answer must have.

    `accuracy_tagged` is the accuracy among completions with an answer in tags, so that a model that
    only learned the format cannot pass for one that learned to be right. `pass_at_k` is the share
    of tasks with a right completion among the k sampled; it is absent for k = 1.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = {
        "eval/samples": float(len(rollouts)),
        "eval/errors": float(sum(len(group.errored) for group in groups)),
        "eval/accuracy": share_correct(groups),
        "eval/returns_mean": statistics.fmean(rollout.reward for rollout in rollouts),
        "eval/completion_tokens_mean": statistics.fmean(
            rollout.trajectory.num_sampled for rollout in rollouts
        ),
    }
    metrics |= {
        f"eval/{name}_mean": float(scores.mean())
        for name, scores in scores_by_name(rollouts).items()
        if not is_criterion(name)
    }
    if tags:
        tagged = [rollout.correct for rollout in rollouts if rollout.is_tagged]
        metrics["eval/format_rate"] = len(tagged) / len(rollouts)
        if tagged:
            metrics["eval/accuracy_tagged"] = statistics.fmean(tagged)
    if max(len(group.rollouts) for group in groups) > 1:
        metrics["eval/pass_at_k"] = statistics.fmean(
            any(rollout.correct for rollout in group.rollouts) for group in groups if group.rollouts
        )
    return metrics


def share_correct(groups: Iterable[Group]) -> float:
    """The share of the completions that are right."""
    return statistics.fmean(rollout.correct for group in groups for rollout in group.rollouts)


def batch_metrics(
    groups: Sequence[Group],
    sums: ExperienceSums,
    replay_buffer_size: int,
    steps: Sequence[StepSums],
    seconds: Mapping[str, float],
) -> Metrics:
    """What is plotted over rollout batches, but for what a run remembers: the batch and its cost.

    `sums` are those of what is learned from. `seconds` are those of the phases `rollout` and
    `train`, as far as there were any.
    """
    metrics = {
        **rollout_metrics(groups),
        **sums.metrics(),
        **system_metrics(replay_buffer_size),
    }
    if "rollout" in seconds:
        rollouts = [r for group in groups for r in (*group.rollouts, *group.errored)]
        sampled = sum(rollout.trajectory.num_sampled for rollout in rollouts)
        metrics["perf/rollout_tokens_per_s"] = sampled / seconds["rollout"]
    if steps:
        learned = sum(step.learned for step in steps)
        metrics["perf/train_tokens_per_s"] = learned / seconds["train"]
        counts = StepSums.merged(steps).counts
        if counts.positions:
            metrics["perf/padding_fraction"] = 1 - counts.read / counts.positions
            metrics["perf/shared_fraction"] = 1 - counts.read / counts.given
    return metrics


def system_metrics(replay_buffer_size: int) -> Metrics:
    gigabyte = 1e9
    return {
        "system/gpu_memory_allocated_gb": torch.cuda.memory_allocated() / gigabyte,
        "system/gpu_memory_reserved_gb": torch.cuda.memory_reserved() / gigabyte,
        "system/process_memory_gb": psutil.Process().memory_info().rss / gigabyte,
        "system/replay_buffer_size": float(replay_buffer_size),
    }
