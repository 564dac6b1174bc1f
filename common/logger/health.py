"""Is a run in trouble? Rules that look at the rows of the last batches, and say what to do."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BatchRow = Mapping[str, int | float]

# How many batches the rules look back on.
HISTORY = 20

# What is a warning, in one place: see docs/metrics.md for what the metrics mean.
MAX_KL = 1.0
MIN_ENTROPY = 0.005
BATCHES_WITHOUT_VARIANCE = 3
MIN_PROGRESS = 0.01
MAX_TRUNCATED = 0.5
MAX_CLIPPED = 0.3
# Of all completions, those on which a reward failed.
MAX_UNSCORED = 0.1
MAX_GRADIENT_RATIO = 20.0
# Above this share of it, a gradient is that of the KL penalty.
MAX_KL_SHARE = 0.5
MAX_MISMATCH = 0.1
# Below this share of the tokens, or with weights whose mean is beyond these, few tokens decide.
MIN_SAMPLE_SIZE = 0.5
MIN_WEIGHT, MAX_WEIGHT = 0.5, 2.0
# Of a share of right answers above this, neither low entropy nor a flat reward is a problem.
SOLVED = 0.8
# A single batch may be an accident.
IN_A_ROW = 3

# What is logged of each optimizer step; of a batch it is the mean.
OF_STEPS = (
    "training_step/clip_fraction",
    "correction/effective_sample_size",
    "correction/weight_mean",
)


@dataclass(frozen=True)
class Rule:
    """`reason` looks at the history, latest batch last, and says what is wrong, if it is."""

    name: str
    reason: Callable[[Sequence[BatchRow]], str | None]
    remedy: str


@dataclass(frozen=True)
class Alarm:
    """What is wrong with a run, and what may help."""

    rule: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def kl_running_away(history: Sequence[BatchRow]) -> str | None:
    kl = _last(history, "rollouts/kl_mean")
    if kl and min(kl) > MAX_KL:
        return f"the KL from the reference is {kl[-1]:.2f} nats per token"
    return None


def entropy_collapse(history: Sequence[BatchRow]) -> str | None:
    entropy = _last(history, "rollouts/entropy_mean")
    right = _last(history, "rewards/correctness_rate")
    if entropy and right and max(entropy) < MIN_ENTROPY and max(right) < SOLVED:
        return f"the entropy is {entropy[-1]:.4f} nats per token with {_share(right)}"
    return None


def no_variance(history: Sequence[BatchRow]) -> str | None:
    share = _last(history, "rollouts/zero_variance_fraction", BATCHES_WITHOUT_VARIANCE)
    if share and min(share) == 1:
        return f"in {len(share)} batches no group had rewards that differ: nothing is learned"
    return None


def reward_flat(history: Sequence[BatchRow]) -> str | None:
    returns = _last(history, "rollouts/returns_mean", HISTORY)
    right = _last(history, "rewards/correctness_rate", HISTORY)
    if not returns or not right or statistics.fmean(right) > SOLVED:
        return None
    half = len(returns) // 2
    gain = statistics.fmean(returns[half:]) - statistics.fmean(returns[:half])
    if abs(gain) < MIN_PROGRESS:
        changed = f"over {len(returns)} batches the mean return changed by {gain:+.4f}"
        return f"{changed} with {_share(right)}"
    return None


def much_truncated(history: Sequence[BatchRow]) -> str | None:
    share = _last(history, "rollouts/truncated_fraction")
    if share and min(share) > MAX_TRUNCATED:
        return f"{share[-1]:.0%} of the completions were cut at their limit"
    return None


def much_unscored(history: Sequence[BatchRow]) -> str | None:
    failed = _last(history, "rollouts/reward_errors")
    scored, errored = _last(history, "rollouts/total_rollouts"), _last(history, "rollouts/errors")
    shares = [f / (s + e) for f, s, e in zip(failed, scored, errored, strict=False) if s + e]
    if len(shares) == IN_A_ROW and min(shares) > MAX_UNSCORED:
        return f"a reward gave no score for {shares[-1]:.0%} of the completions"
    return None


def much_clipped(history: Sequence[BatchRow]) -> str | None:
    share = _last(history, "training_step/clip_fraction")
    if share and min(share) > MAX_CLIPPED:
        return f"{share[-1]:.0%} of the tokens are clipped"
    return None


def gradient_spike(history: Sequence[BatchRow]) -> str | None:
    return None if _kl_share(history) > MAX_KL_SHARE else _spike(history)


def kl_spike(history: Sequence[BatchRow]) -> str | None:
    share, spike = _kl_share(history), _spike(history)
    if spike and share > MAX_KL_SHARE:
        return f"{spike}, and {share:.0%} of it is the KL penalty's"
    return None


def _kl_share(history: Sequence[BatchRow]) -> float:
    return history[-1].get("rollouts/kl_gradient_share", 0.0)


def _spike(history: Sequence[BatchRow]) -> str | None:
    *before, last = [row.get("training_epoch/grad_norm_max", math.nan) for row in history]
    usual = [norm for norm in before if math.isfinite(norm)]
    if len(usual) < IN_A_ROW or not math.isfinite(last):
        return None
    ratio = last / max(statistics.median(usual), 1e-12)
    if ratio > MAX_GRADIENT_RATIO:
        return f"the gradient norm is {last:.3g}, {ratio:.0f} times what it was"
    return None


def mismatch_high(history: Sequence[BatchRow]) -> str | None:
    mismatch = _last(history, "rollouts/logprob_mismatch_mean")
    if mismatch and min(mismatch) > MAX_MISMATCH:
        return f"the log-probs of sampler and learner differ by {mismatch[-1]:.2f} nats on average"
    return None


def weights_running_away(history: Sequence[BatchRow]) -> str | None:
    sizes = _last(history, "correction/effective_sample_size")
    means = _last(history, "correction/weight_mean")
    if sizes and max(sizes) < MIN_SAMPLE_SIZE:
        return f"the weights of the correction make the tokens worth {sizes[-1]:.0%} of as many"
    if means and (max(means) < MIN_WEIGHT or min(means) > MAX_WEIGHT):
        return f"the weights of the correction have the mean {means[-1]:.2g}"
    return None


def step_not_finite(history: Sequence[BatchRow]) -> str | None:
    counts = [row.get("training/invalid_loss_count", 0.0) for row in history[-2:]]
    new = counts[-1] - (counts[0] if len(counts) == 2 else 0.0)
    return f"{new:.0f} optimizer steps of the batch had no finite gradient" if new > 0 else None


RULES = (
    Rule("kl_running_away", kl_running_away, "lower --lr or raise --kl-weight"),
    Rule(
        "entropy_collapse", entropy_collapse, "lower --lr, or raise --clip-eps-high or --kl-weight"
    ),
    Rule("no_variance", no_variance, "use tasks of another difficulty, or --dynamic-sampling"),
    Rule("reward_flat", reward_flat, "raise --lr or --group-size, or look at the samples"),
    Rule("much_truncated", much_truncated, "raise --max-completion-tokens and --max-length"),
    Rule(
        "much_unscored",
        much_unscored,
        "mend what `failure` in samples.jsonl says, or raise --reward-timeout",
    ),
    Rule("much_clipped", much_clipped, "lower --lr or --epochs-per-step"),
    Rule("gradient_spike", gradient_spike, "lower --lr or --max-grad-norm"),
    Rule("kl_spike", kl_spike, "lower --kl-weight or --lr, or --kl-estimator k2"),
    Rule(
        "mismatch_high",
        mismatch_high,
        "use --dtype float32 or --head-dtype float32, or --attn eager",
    ),
    Rule(
        "weights_running_away",
        weights_running_away,
        "use --dtype float32, or --correction token_truncated",
    ),
    Rule("step_not_finite", step_not_finite, "lower --lr; samples.jsonl names the tasks"),
)


class Health:
    """Follows the rows of a run, and warns once each time that a rule begins to hold."""

    def __init__(self) -> None:
        self._history: deque[dict[str, int | float]] = deque(maxlen=HISTORY)
        self._row: dict[str, int | float] = {}
        self._steps: defaultdict[str, list[float]] = defaultdict(list)
        self._holding: set[str] = set()

    def add(self, row: BatchRow) -> None:
        """Take in any row that is logged; those of a batch count as one."""
        self._row.update(row)
        for name in OF_STEPS:
            if name in row:
                self._steps[name].append(row[name])

    def end_batch(self) -> list[Alarm]:
        """What has begun to be wrong with the batch that was logged."""
        self._row |= {name: statistics.fmean(values) for name, values in self._steps.items()}
        self._history.append(self._row)
        self._row, self._steps = {}, defaultdict(list)
        history = list(self._history)
        found = {rule.name: rule.reason(history) for rule in RULES}
        new = [rule for rule in RULES if found[rule.name] and rule.name not in self._holding]
        self._holding = {name for name, reason in found.items() if reason}
        return [Alarm(rule.name, str(found[rule.name]), rule.remedy) for rule in new]

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in what a run logged before it was stopped; what was said is not said again."""
        for row in rows:
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
            self.add(numbers)
            if "rollouts/returns_mean" in row:
                self.end_batch()


def _share(right: Sequence[float]) -> str:
    """How much was right in the last batch; with a doubt where nothing has been."""
    return f"{right[-1]:.0%} right" if any(right) else "nothing right by what --correct says is"


def _last(history: Sequence[BatchRow], name: str, count: int = IN_A_ROW) -> list[int | float]:
    """The values of the last batches; none unless each of so many has a finite one."""
    values = [row.get(name, math.nan) for row in history[-count:]]
    enough = len(values) == count and all(map(math.isfinite, values))
    return values if enough else []
