"""From a buffer to new weights: optimizer batches, their micro-batches, and the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.objective import Extras
from common.flags.train_config import TrainConfig
from common.logger.logger import Logger
from common.logger.metrics import RunStatistics, StepSums, epoch_metrics
from common.logger.timer import Timer
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    Experience,
    ExperienceBatch,
    LogProbModel,
    MicroBatchLimits,
    ReplayBuffer,
    Scored,
    blank_experience,
    elsewhere,
    even_parts,
    micro_batches,
    score_tokens,
    totals_of,
)
from common.training.exchange import hand_over
from common.training.ranks import Ranks
from common.training.seeding import stream

# What an optimizer step on policy finds out of its experiences.
_OF_POLICY = ("log_probs_old", "entropy")


class Learner:
    """The policy that learns, its optimizer, and the optimizer batches of each step."""

    def __init__(
        self,
        config: TrainConfig,
        policy: TokenLogProbs,
        extras: Extras,
        statistics: RunStatistics,
        timer: Timer,
        ranks: Ranks,
        *,
        learns_at_zero: bool = True,
    ) -> None:
        self.policy = policy
        self.optimizer = make_optimizer(config, policy)
        self.global_step = 0
        """Optimizer steps done."""
        total_steps = optimizer_steps(config, config.max_steps)
        self.warmup_steps = math.ceil(config.warmup_fraction * total_steps)
        """Those over which the learning rate rises; a resumed run keeps its own."""
        self.steps: list[StepSums] = []
        """Of the rollout batch in hand."""
        self.planned = 0
        """Optimizer steps that were planned for the rollout batches before the one in hand."""
        self.config = config
        self.limits = MicroBatchLimits(config.micro_batch_tokens, config.micro_batch_size)
        self.extras = extras
        self.learns_at_zero = learns_at_zero
        self.statistics = statistics
        self.timer = timer
        self.ranks = ranks
        self.logger = Logger.silent()

    def optimizer_batches(self, step: int, buffer: ReplayBuffer) -> Iterator[OptimizerBatch]:
        """`--epochs-per-step` passes over the buffer, each in an order of its own.

        Every batch is to be learned from and then stepped.
        """
        self.steps, self.planned = [], optimizer_steps(self.config, step - 1)
        size, seed = self.config.train_batch_size, self.config.seed
        epochs = [
            list(buffer.batches(size, stream(seed, "shuffle", step - 1, epoch)))
            for epoch in range(self.config.epochs_per_step)
        ]
        with self.timer("log_probs"):
            self.score(self.that_teach(self._read_later(list(chain.from_iterable(epochs)))))
        with self.timer("train"):
            for batches in epochs:
                passed = len(self.steps)
                for batch in batches:
                    yield OptimizerBatch(self, batch)
                self.logger.log_batch(step, epoch_metrics(self.steps[passed:]))

    def score(self, experiences: Sequence[Experience]) -> None:
        """Give those that lack them the old log-probs and the entropy of the policy.

        Raises `ValueError` if it is not the policy that sampled them any more.
        """
        unknown = [one for one in experiences if one.log_probs_old is None]
        if not unknown:
            return
        if not self.is_on_policy(unknown):
            raise ValueError(
                "no old log-probs, and the policy has moved since it sampled: call Learner.score "
                "before the first optimizer step"
            )
        for experience, (log_probs, entropy) in self.scored(self.policy, unknown):
            experience.log_probs_old, experience.entropy = log_probs, entropy

    def scored(
        self, model: LogProbModel, experiences: Sequence[Experience]
    ) -> Iterator[tuple[Experience, Scored]]:
        """The experiences, each with what a model says of its tokens. Each rank computes a share of
        it, and has no data for the others."""
        parts = self.handed_out(experiences)
        own = list(chain.from_iterable(self.ranks.share(parts)))
        passes = 0
        if self.ranks.in_step:
            passes = max(len(micro_batches(part, self.limits)) for part in parts)
        rows = score_tokens(model, own, self.limits, passes)
        scored = dict(zip(map(id, own), rows, strict=True))
        for one in experiences:
            unknown = elsewhere(len(one))
            yield one, scored.get(id(one), (unknown, unknown))

    def handed_out(self, experiences: Sequence[Experience]) -> list[list[Experience]]:
        """A part for each rank, which now has it whole."""
        parts = even_parts(experiences, self.ranks.count)
        if self.ranks.count > 1:
            hand_over(self.ranks, parts)
        return parts

    def is_on_policy(self, experiences: Iterable[Experience]) -> bool:
        """Whether the policy is still the one that sampled."""
        return all(experience.scored_at == self.global_step for experience in experiences)

    def that_teach(self, experiences: Sequence[Experience]) -> Sequence[Experience]:
        """Those that may move the weights: all, unless the objective learns nothing from a sequence
        whose advantages are 0."""
        if self.learns_at_zero:
            return experiences
        return [
            one
            for one in experiences
            if one.advantages is None or one.advantages[one.sampled].any()
        ]

    def _read_later(self, batches: Sequence[Sequence[Experience]]) -> list[Experience]:
        """What needs old log-probs: in the first optimizer step they are those of its own pass."""
        if not batches or not self.is_on_policy(batches[0]):
            return list(chain.from_iterable(batches))
        first = set(map(id, batches[0]))
        later = {id(one): one for one in chain.from_iterable(batches) if id(one) not in first}
        return list(later.values())


class OptimizerBatch:
    """What one update of the weights is made from; each rank has a share of it."""

    def __init__(self, learner: Learner, experiences: Sequence[Experience]) -> None:
        self._learner = learner
        self._experiences = experiences
        self._sums = StepSums()
        self._counts_before = learner.policy.counts
        parts = learner.handed_out(learner.that_teach(experiences))
        self._share = list(chain.from_iterable(learner.ranks.share(parts)))
        self._split = micro_batches(self._share, learner.limits)
        self._on_policy = learner.is_on_policy(experiences)
        self.totals = totals_of(experiences)
        """Counted over all ranks: the denominators of the loss."""
        self.rounds = max(1, *learner.ranks.merge(len(self._split)))
        """Micro-batches of each rank."""

    def micro_batches(self) -> Iterator[ExperienceBatch]:
        """Those of this rank's share, then blank ones up to the most that any rank has.

        So all ranks go through the model equally often, whatever they have to learn from.
        """
        device = next(self._learner.policy.parameters()).device
        own = (
            replace(ExperienceBatch.collate(together, device), on_policy=self._on_policy)
            for together in self._split
        )
        blank = ExperienceBatch.collate([blank_experience()], device)
        return islice(chain(own, repeat(blank)), self.rounds)

    def record(
        self,
        micro: ExperienceBatch,
        log_ratio: Float[Tensor, "batch time"],
        policy_loss: Float[Tensor, ""],
        kl_loss: Float[Tensor, ""] | float,
        entropy: Float[Tensor, "batch time"],
        clipped: Bool[Tensor, "batch time"] | None,
        kl: Float[Tensor, "batch time"] | None,
        weights: Float[Tensor, "batch time"] | None = None,
        bonus: Float[Tensor, ""] | float = 0.0,
    ) -> None:
        """Take in what a micro-batch gave, for the metrics of the step and of the rollouts."""
        micro.keep_entropy(entropy)
        per_token = {"entropy": entropy, "clip_fraction": clipped, "kl": kl}
        known = {name: values for name, values in per_token.items() if values is not None}
        self._sums.add(policy_loss + kl_loss - bonus, micro, log_ratio.detach().exp(), **known)
        if weights is not None:
            self._sums.add_weights(weights, micro.sampled)
        extras = self._learner.extras
        parts = {extras.policy_loss: policy_loss, extras.kl_loss: torch.as_tensor(kl_loss)}
        self._sums.add_components(**{name: value for name, value in parts.items() if name})

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        clip: Callable[..., Any] = torch.nn.utils.clip_grad_norm_,
        *,
        reduced: bool = False,
    ) -> None:
        """Update the weights by the gradients, which are summed over ranks unless they are
        `reduced` already. `clip` is torch's function or Accelerate's.
        """
        learner, config, logger = self._learner, self._learner.config, self._learner.logger
        if not reduced:
            learner.ranks.sum_gradients(learner.policy.parameters())
        self._sums.counts = learner.policy.counts.plus(self._counts_before, times=-1)
        told = learner.ranks.merge((self._sums.cpu(), self._scored()))
        sums = StepSums.merged([sums for sums, _ in told])
        if self._on_policy:
            self._keep_scores(set.intersection(*(names for _, names in told)))
        planned = learner.planned + len(learner.steps)
        rate = learning_rate(config, planned, learner.warmup_steps)
        logger.snapshot_gradients(learner.global_step)
        norm = optimizer_step(
            optimizer, rate, config.max_grad_norm, lambda *bound: learner.ranks.whole(clip(*bound))
        )
        learner.global_step += 1
        sums.finish(norm, rate)
        learner.steps.append(sums)
        logger.log_training_step(learner.global_step, sums.metrics())
        if not learner.statistics.count_step(norm):
            logger.log_invalid_step(learner.global_step, self._experiences)

    def _scored(self) -> set[str]:
        """What all experiences of this share have of the policy that sampled."""
        return {
            name for name in _OF_POLICY if all(getattr(o, name) is not None for o in self._share)
        }

    def _keep_scores(self, known: Collection[str]) -> None:
        """Have on the CPU what the policy that sampled says, as far as all ranks know it; of other
        shares it is known that they have it."""
        own = set(map(id, self._share))
        for one in self._learner.that_teach(self._experiences):
            for name in _OF_POLICY:
                row = getattr(one, name)
                if name not in known:
                    setattr(one, name, None)
                elif id(one) not in own:
                    setattr(one, name, elsewhere(len(one)) if row is None else row)
                else:
                    setattr(one, name, row.to("cpu", copy=True))


def learning_rate(config: TrainConfig, step: int, warmup_steps: int) -> float:
    """The rate of optimizer step `step`, from 0: linear warm-up, then the schedule."""
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    total_steps = optimizer_steps(config, config.max_steps)
    progress = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
    decay = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_schedule]
    return config.lr * warmup * decay


def optimizer_steps(config: TrainConfig, batches: int) -> int:
    """Optimizer steps in that many rollout batches."""
    sequences = config.rollouts_per_step * config.group_size
    return batches * config.epochs_per_step * math.ceil(sequences / config.train_batch_size)


def make_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained.

    It is torch's fused one, which goes over the weights once and needs no memory for a moment as
    large as they are. A checkpoint of before names another, which its run goes on with.
    """
    kind = OffloadedAdamW if config.offload == "optimizer" else torch.optim.AdamW
    return kind(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        fused=True,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )


class OffloadedAdamW(torch.optim.AdamW):
    """Whose averages are in the machine's memory, and on a device for the step of their weight."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            weights = group["params"]
            for weight in weights:
                self._move_averages(weight, weight.device)
                group["params"] = [weight]
                super().step(closure)
                self._move_averages(weight, torch.device("cpu"))
            group["params"] = weights

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "state": {}})
        weights = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for number, state in state_dict["state"].items():
            device = weights[number].device
            self.state[weights[number]] = {
                name: value.to("cpu" if value.ndim else device) for name, value in state.items()
            }

    def _move_averages(self, weight: torch.nn.Parameter, device: torch.device) -> None:
        state = self.state[weight]
        for name, value in state.items():
            # What it counts stays where the weight is, as a fused step wants it.
            if value.ndim:
                state[name] = value.to(device)


def optimizer_step(
    optimizer: torch.optim.Optimizer, rate: float, max_grad_norm: float, clip: Callable[..., Any]
) -> float:
    """Clip, step and clear the gradients; returns the norm before clipping.

    Gradients that are not finite are dropped and change nothing; the norm tells.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(clip(parameters, max_grad_norm or math.inf))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
