"""Does GRPO make wrong answers long, and does Dr. GRPO not? Five seeds of each.

python -m benchmarks.drgrpo_study          (about 22 minutes on two cores)

Writes `drgrpo_study_*.png` beside this file and prints the tables of `drgrpo_study.md`.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
import tyro
from rich.console import Console

from benchmarks.rows import column
from common.algo.advantages import group_advantages, mean_centred_advantages, within_groups
from common.algo.aggregation import constant_length_mean, sequence_mean
from common.algo.objective import Objective
from common.algo.surrogate import token_log_ratio, unclipped_surrogate
from common.models.load import ModelOptions, load_policy, load_tokenizer, stop_token_ids
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    ExperienceBatch,
    MicroBatchLimits,
    experiences_from,
    micro_batches,
    totals_of,
    with_advantages,
)
from common.repository import REPOSITORY
from common.rewards.answers import is_correct
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.reward import TEXT_REWARDS, build_rewards
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator
from common.rollout.rollout import rollout, single_turn
from common.rollout.sampling import Sampling
from common.rollout.trajectory import Group
from common.run.files import read_rows
from common.tasks.math_tasks import distinct_expressions

HERE = Path(__file__).parent
EXPERIMENTS = {"GRPO": "experiment_base", "Dr. GRPO": "experiment_drgrpo"}
COLOURS = {"GRPO": "tab:orange", "Dr. GRPO": "tab:blue"}
REWARD_WEIGHTS = "answer_check=1,format_exact=0.1"
MAX_COMPLETION_TOKENS = 192
MAX_LENGTH = 288
LAST_BATCHES = 5


@dataclass(frozen=True)
class StudyConfig:
    """GRPO against Dr. GRPO on the same tasks, with the same budget, from the same weights."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Runs that are compared."""
    tuning_seed: int = 11
    """Seed of the runs that choose each method's learning rate; not among those compared."""
    learning_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)
    """Tried alike for both methods."""
    terms: tuple[int, int] = (3, 8)
    """Fewest and most terms of a task. The model was fine-tuned on two to four."""
    steps: int = 80
    """Rollout batches of each run."""
    root: Path = REPOSITORY / "runs" / "drgrpo_study"
    """Runs that are there already are read and not run again."""
    parallel: int = 2
    """Runs at a time, one thread each."""


@dataclass(frozen=True)
class Run:
    method: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"lr{self.lr:g}-seed{self.seed}"

    def directory(self, config: StudyConfig) -> Path:
        return config.root / EXPERIMENTS[self.method] / self.name


def main(config: StudyConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    tasks = write_tasks(config)
    console.print(replay(config))

    tuning = [
        Run(method, lr, config.tuning_seed)
        for lr in config.learning_rates
        for method in EXPERIMENTS
    ]
    train_all(config, tasks, tuning)
    console.print(tuning_table(config, tuning))
    chosen = {
        method: max(
            (run for run in tuning if run.method == method),
            key=lambda run: last_mean(curves(config, run)["reward"]),
        ).lr
        for method in EXPERIMENTS
    }

    compared = {
        method: [Run(method, lr, seed) for seed in config.seeds] for method, lr in chosen.items()
    }
    train_all(config, tasks, [run for pair in zip(*compared.values(), strict=True) for run in pair])
    results = {method: [curves(config, run) for run in runs] for method, runs in compared.items()}
    budget = min(found["tokens"][-1] for runs in results.values() for found in runs)
    draw_curves(results, budget, HERE / "drgrpo_study_curves.png")
    console.print(result_table(results, chosen, budget))


def write_tasks(config: StudyConfig) -> Path:
    """As many tasks of each length, in one file, which both methods split alike."""
    path = config.root / "tasks.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    expressions = [
        expression
        for terms in range(config.terms[0], config.terms[1] + 1)
        for held_out, count in ((False, 900), (True, 100))
        for expression in islice(
            distinct_expressions(rng, terms=(terms, terms), digits=1, held_out=held_out), count
        )
    ]
    rng.shuffle(expressions)
    rows = [expression.as_task(number) for number, expression in enumerate(expressions)]
    path.write_text(
        "".join(json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows)
    )
    return path


def train_all(config: StudyConfig, tasks: Path, runs: Sequence[Run]) -> None:
    with ThreadPoolExecutor(config.parallel) as pool:
        list(pool.map(partial(train, config, tasks), runs))


def train(config: StudyConfig, tasks: Path, run: Run) -> None:
    """Train as a user would. Without clipping of gradients, as the scales of the two differ."""
    if (run.directory(config) / "checkpoints" / "latest").exists():
        return
    flags = {
        "--run-name": run.name,
        "--log-dir": config.root,
        "--data-path": tasks,
        "--seed": run.seed,
        "--lr": run.lr,
        "--max-steps": config.steps,
        "--max-completion-tokens": MAX_COMPLETION_TOKENS,
        "--max-length": MAX_LENGTH,
        "--max-grad-norm": 0,
        "--kl-weight": 0,
        "--reward-weights": REWARD_WEIGHTS,
        "--checkpoint-interval": 0,
        "--eval-interval": 0,
    }
    arguments = [str(part) for item in flags.items() for part in item]
    subprocess.run(
        [sys.executable, "train.py", *arguments, "--no-wandb", "--no-tensorboard"],
        cwd=REPOSITORY / EXPERIMENTS[run.method],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def curves(config: StudyConfig, run: Run) -> dict[str, np.ndarray]:
    """What is plotted of a run, a value per rollout batch; NaN where no answer was wrong."""
    rows = list(read_rows(run.directory(config) / "metrics.jsonl"))
    steps = np.array(column(rows, "rollouts/total_rollouts")[0])

    def values(name: str) -> np.ndarray:
        found = dict(zip(*column(rows, f"rollouts/{name}"), strict=True))
        return np.array([found.get(step, math.nan) for step in steps])

    generated = values("completion_tokens_mean") * values("total_rollouts")
    return {
        "tokens": np.cumsum(generated),
        "reward": values("returns_mean"),
        "correct": values("completion_tokens_correct_mean"),
        "incorrect": values("completion_tokens_incorrect_mean"),
        "truncated": values("truncated_fraction"),
        "efficiency": 100 * values("returns_sum") / generated,
    }


def last_mean(values: np.ndarray) -> float:
    return float(np.nanmean(values[-LAST_BATCHES:]))


def tuning_table(config: StudyConfig, runs: Iterable[Run]) -> str:
    lines = [
        f"Mean reward of the last {LAST_BATCHES} batches, seed {config.tuning_seed}:\n",
        "| method | learning rate | reward |",
        "|---|---|---|",
    ]
    for run in sorted(runs, key=lambda run: (run.method, run.lr)):
        reward = last_mean(curves(config, run)["reward"])
        lines.append(f"| {run.method} | {run.lr:g} | {reward:.3f} |")
    return "\n".join(lines) + "\n"


def result_table(
    results: dict[str, list[dict[str, np.ndarray]]], chosen: dict[str, float], budget: float
) -> str:
    """Both methods after the same number of generated tokens, with 95 % intervals over seeds."""
    columns = {
        "reward": ("mean reward", 3),
        "correct": ("tokens, correct", 1),
        "incorrect": ("tokens, incorrect", 1),
        "truncated": ("cut at the budget", 3),
        "efficiency": ("reward per 100 tokens", 2),
    }
    ends = {
        method: {
            name: [last_mean(found[name][found["tokens"] <= budget]) for found in runs]
            for name in columns
        }
        for method, runs in results.items()
    }
    lines = [
        f"The last {LAST_BATCHES} batches within {budget:,.0f} generated tokens, mean over seeds "
        "and its 95 % interval (Student's t):\n",
        f"| method | learning rate | {' | '.join(title for title, _ in columns.values())} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for method, values in ends.items():
        cells = [_interval(values[name], digits) for name, (_, digits) in columns.items()]
        lines.append(f"| {method} | {chosen[method]:g} | {' | '.join(cells)} |")
    grpo, dr_grpo = ends.values()
    differences = [
        _interval(np.subtract(dr_grpo[name], grpo[name]).tolist(), digits)
        for name, (_, digits) in columns.items()
    ]
    lines.append(f"| Dr. GRPO - GRPO, seed by seed | | {' | '.join(differences)} |")
    return "\n".join(lines) + "\n"


def _interval(values: Sequence[float], digits: int) -> str:
    mean, half = statistics.fmean(values), float(half_width(np.array(values)[:, None])[0])
    return f"{mean:.{digits}f} ({mean - half:.{digits}f} to {mean + half:.{digits}f})"


def half_width(samples: np.ndarray) -> np.ndarray:
    """Of the 95 % interval of the mean over rows: Student's t, NaN left out."""
    count = np.sum(np.isfinite(samples), axis=0)
    spread = np.nanstd(samples, axis=0, ddof=1) / np.sqrt(count)
    return spread * scipy.stats.t.ppf(0.975, np.maximum(1, count - 1))


def draw_curves(results: dict[str, list[dict[str, np.ndarray]]], budget: float, path: Path) -> None:
    """Mean over seeds and its 95 % band, over tokens generated."""
    panels = {
        "reward": "mean reward",
        "correct": "tokens of correct answers",
        "incorrect": "tokens of incorrect answers",
        "efficiency": "reward per 100 generated tokens",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.4), layout="constrained")
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for method, runs in results.items():
            grid = np.linspace(max(found["tokens"][0] for found in runs), budget, 60)
            samples = np.array([_at(grid, found["tokens"], found[name]) for found in runs])
            mean, half = np.nanmean(samples, axis=0), half_width(samples)
            axis.plot(grid / 1000, mean, color=COLOURS[method], label=method)
            axis.fill_between(
                grid / 1000, mean - half, mean + half, color=COLOURS[method], alpha=0.2, lw=0
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("thousand tokens generated")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def _at(grid: np.ndarray, tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.interp(grid, tokens[known], values[known])


def replay(config: StudyConfig) -> str:
    """The same rollouts, of the weights that all runs start from, through both losses."""
    torch.set_num_threads(2)
    options = ModelOptions("tiny", torch.device("cpu"))
    tokenizer, policy = load_tokenizer("tiny"), TokenLogProbs(load_policy(options), 1.0)
    rng = random.Random(1)
    expressions = islice(
        distinct_expressions(rng, terms=config.terms, digits=1, held_out=False), 128
    )
    chat = ChatFormat(tokenizer, "")
    stop_ids = stop_token_ids(policy.model, tokenizer) | chat.turn_end_ids
    groups = rollout(
        [expression.as_task(number) for number, expression in enumerate(expressions)],
        step=0,
        group_size=8,
        seed=0,
        converse=partial(
            single_turn,
            generator=LocalGenerator(policy.model, stop_ids, MAX_LENGTH),
            chat=chat,
            sampling=Sampling(1.0, 1.0),
            max_completion_tokens=MAX_COMPLETION_TOKENS,
        ),
        judge=Judge(build_rewards(TEXT_REWARDS, (), REWARD_WEIGHTS), Notion(is_correct)),
    )
    objectives = {
        "GRPO": Objective(
            partial(within_groups, advantages=group_advantages),
            token_log_ratio,
            unclipped_surrogate,
            sequence_mean,
        ),
        "Dr. GRPO": Objective(
            partial(within_groups, advantages=mean_centred_advantages),
            token_log_ratio,
            unclipped_surrogate,
            partial(constant_length_mean, max_tokens=MAX_COMPLETION_TOKENS),
        ),
    }
    gradients, lines = {}, _length_lines(groups)
    lines += [
        "\nShare of the summed |d loss / d log-prob| that falls on completions of that kind:\n",
        "| method | right | wrong, shorter half | wrong, longer half | a token of the longest "
        "quarter of wrong ones against one of the shortest |",
        "|---|---|---|---|---|",
    ]
    for method, objective in objectives.items():
        gradients[method], weights = gradient(objective, policy, groups)
        lines.append(f"| {method} | {_shares(groups, weights)} |")
    cosine = torch.cosine_similarity(*gradients.values(), dim=0).item()
    lines.append(f"\nCosine of the two gradients of all {len(gradients['GRPO']):,} parameters: ")
    return "\n".join(lines) + f"{cosine:.3f}\n"


def gradient(
    objective: Objective, policy: TokenLogProbs, groups: Sequence[Group]
) -> tuple[torch.Tensor, list[float]]:
    """Of the loss in the policy's parameters, and in a token's log-prob for each sequence."""
    _, experiences = with_advantages(groups, experiences_from(groups), objective.advantages)
    totals, device = totals_of(experiences), policy.model.device
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    policy.zero_grad()
    weights: dict[int, float] = {}
    for together in micro_batches(experiences, MicroBatchLimits(tokens=8192)):
        micro = ExperienceBatch.collate(together, device)
        log_probs, _ = policy(micro.token_ids, micro.attention_mask, micro.sampled, micro.kept)
        log_probs.retain_grad()
        log_ratio = objective.log_ratio(log_probs, log_probs.detach(), micro.sampled)
        per_token, _ = objective.surrogate(log_ratio, micro.tokens(log_probs, totals))
        objective.aggregate(per_token, micro.sampled, totals).backward()
        assert log_probs.grad is not None
        largest = log_probs.grad.abs().max(dim=1).values.tolist()
        weights |= zip(map(id, together), largest, strict=True)
    flat = [torch.zeros(1) if p.grad is None else p.grad.flatten() for p in parameters]
    return torch.cat(flat), [weights[id(experience)] for experience in experiences]


def _length_lines(groups: Sequence[Group]) -> list[str]:
    lines = [
        f"{len(groups)} groups of {len(groups[0].rollouts)} before training, tokens per "
        "completion (5 %, 50 %, 95 %):\n",
        "| completions | number | length |",
        "|---|---|---|",
    ]
    for kind, wanted in (("right", True), ("wrong", False)):
        lengths = [
            rollout.trajectory.num_sampled
            for group in groups
            for rollout in group.rollouts
            if rollout.correct == wanted
        ]
        low, middle, high = np.quantile(lengths, (0.05, 0.5, 0.95))
        lines.append(f"| {kind} | {len(lengths)} | {low:.0f}, {middle:.0f}, {high:.0f} |")
    return lines


def _shares(groups: Sequence[Group], weights: Sequence[float]) -> str:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = np.array([rollout.trajectory.num_sampled for rollout in rollouts])
    correct = np.array([rollout.correct for rollout in rollouts])
    per_token = np.array(weights)
    learned = per_token > 0
    summed = per_token * lengths
    middle = np.median(lengths[~correct & learned])
    kinds = (correct, ~correct & (lengths <= middle), ~correct & (lengths > middle))
    short, long = np.quantile(lengths[~correct & learned], (0.25, 0.75))
    ratio = (
        per_token[~correct & learned & (lengths >= long)].mean()
        / per_token[~correct & learned & (lengths <= short)].mean()
    )
    cells = [f"{summed[kind].sum() / summed.sum():.1%}" for kind in kinds]
    return " | ".join([*cells, f"{ratio:.2f}"])


if __name__ == "__main__":
    main(tyro.cli(StudyConfig))
