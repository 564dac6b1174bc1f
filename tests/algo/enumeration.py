"""Expected gradients without sampling: every answer and every batch of a language with few tokens.

A policy has logits of its own for every prefix of a `World`, in float64. Token 0 ends an answer, so
that lengths differ. A batch is one group, or one of each of several prompts; all of them are
enumerated with their probabilities, and what the train scripts compute of one, with the functions
of an objective, is computed of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from common.algo.advantages import ComparedBatch
from common.algo.aggregation import BatchTotals
from common.algo.objective import Objective
from common.algo.tokens import TokenBatch

STOP = 0


@dataclass(frozen=True)
class World:
    """A vocabulary, the longest answer, how many prompts are in a batch and answers in a group."""

    vocabulary: int = 5
    longest: int = 3
    prompts: int = 1
    group_size: int = 2
    binary: bool = False
    """Whether rewards are 0 and 1, or sums of two that have several values."""

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """Those that end with the token that ends, or at the longest length."""
        every = itertools.product(range(self.vocabulary), repeat=self.longest)
        cut = {answer[: answer.index(STOP) + 1] if STOP in answer else answer for answer in every}
        return sorted(cut)

    @cached_property
    def prefixes(self) -> dict[tuple[int, ...], int]:
        found = {answer[:length] for answer in self.answers for length in range(len(answer))}
        return {prefix: number for number, prefix in enumerate(sorted(found))}

    @cached_property
    def tokens(self) -> Tensor:
        """Of each answer, answers x time; 0 beyond its end."""
        return torch.tensor([[*a, *[0] * (self.longest - len(a))] for a in self.answers])

    @cached_property
    def lengths(self) -> Tensor:
        return torch.tensor([len(answer) for answer in self.answers])

    @cached_property
    def mask(self) -> Tensor:
        return torch.arange(self.longest) < self.lengths[:, None]

    @cached_property
    def contexts(self) -> Tensor:
        """The number of the prefix that each token follows."""
        return torch.tensor(
            [
                [self.prefixes[answer[: min(t, len(answer) - 1)]] for t in range(self.longest)]
                for answer in self.answers
            ]
        )

    def scores(self, prompt: int) -> dict[str, Tensor]:
        """What two rewards give each answer: whether it is right, and how well it is written."""
        right = [float((sum(answer) + prompt) % 3 == 1) for answer in self.answers]
        scores = {"right": torch.tensor(right, dtype=torch.float64)}
        if not self.binary:
            # Graded by the second token, so that the two are neither equal nor independent.
            graded = [0.25 * (answer[-2:][0] % 3) for answer in self.answers]
            scores["style"] = torch.tensor(graded, dtype=torch.float64)
        return scores

    def rewards(self, prompt: int) -> Tensor:
        return torch.stack(list(self.scores(prompt).values())).sum(dim=0)

    def logits(self, seed: int = 0, spread: float = 1.0) -> Tensor:
        """Of a policy: prompts x prefixes x vocabulary."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.prompts, len(self.prefixes), self.vocabulary)
        return spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Of each token of each answer to each prompt: prompts x answers x time, 0 beyond ends."""
        every = logits.log_softmax(dim=-1)[:, self.contexts]
        chosen = every.gather(-1, self.tokens.expand(self.prompts, -1, -1)[..., None])[..., 0]
        return torch.where(self.mask, chosen, 0.0)

    @cached_property
    def batches(self) -> Tensor:
        """Every batch as the answers in it: batches x (prompts x group size)."""
        numbers = range(len(self.answers))
        every = itertools.product(numbers, repeat=self.prompts * self.group_size)
        return torch.tensor(list(every))

    @cached_property
    def prompt_of(self) -> Tensor:
        """The prompt that each place in a batch belongs to."""
        return torch.arange(self.prompts).repeat_interleave(self.group_size)

    def compared(self, answers: Tensor) -> ComparedBatch:
        """One batch, as the functions that compare are given it."""
        prompts, mask = self.prompt_of, self.mask[answers]
        scores = [self.scores(prompt) for prompt in range(self.prompts)]
        of_each = {
            name: torch.stack([s[name] for s in scores])[prompts, answers] for name in scores[0]
        }
        return ComparedBatch(
            rewards=torch.stack(list(of_each.values())).sum(dim=0),
            scores=of_each,
            groups=prompts,
            turns=torch.where(mask, 0, -1),
            kl=None,
            mask=mask,
            weights=dict.fromkeys(of_each, 1.0),
        )


@cache
def advantages_of(world: World, function: Callable[[ComparedBatch], Tensor]) -> Tensor:
    """Of every token of every batch: batches x places x time.

    Batches whose rewards, scores and lengths are the same have the same: one of them is asked
    for. It must not look at entropies or at a KL, of which there is none.
    """
    known = torch.stack(
        [torch.stack([*world.scores(p).values(), world.lengths]) for p in range(world.prompts)]
    )  # prompts x what is known x answers
    kinds = torch.stack([row.unique(dim=1, return_inverse=True)[1] for row in known])
    signatures = kinds[world.prompt_of, world.batches]
    unique, where = signatures.unique(dim=0, return_inverse=True)
    first = torch.empty(len(unique), dtype=torch.long)
    first[where] = torch.arange(len(where))
    made = []
    for answers in world.batches[first]:
        values = function(world.compared(answers))
        made.append(values if values.ndim == 2 else values[:, None].expand(-1, world.longest))
    return torch.stack(made)[where]


def expected_gradient(
    objective: Objective,
    world: World,
    logits: Tensor,
    sampler: Tensor | None = None,
    log_probs_old: Tensor | None = None,
) -> Tensor:
    """What an objective ascends on average: of -loss with respect to the logits, over every batch
    that a sampler with logits of its own may give, by default the policy itself.

    `log_probs_old` are by default those of the policy: nothing has been learned from the batch yet.
    """
    logits = logits.detach().clone().requires_grad_()
    log_probs = world.log_probs(logits)
    sampled = log_probs.detach() if sampler is None else world.log_probs(sampler).detach()
    old = log_probs.detach() if log_probs_old is None else log_probs_old
    advantages = advantages_of(world, objective.advantages)
    prompts, places = world.prompt_of, world.prompts * world.group_size
    probability = sampled.sum(dim=-1)[prompts, world.batches].sum(dim=-1).exp()
    sizes = world.lengths[world.batches].sum(dim=-1)
    loss = torch.zeros((), dtype=torch.float64)
    for size in sizes.unique().tolist():
        alike = sizes == size
        answers = world.batches[alike].flatten()
        prompt = prompts.repeat(int(alike.sum()))
        mask, totals = world.mask[answers], BatchTotals(places, size)
        tokens = TokenBatch(
            log_probs=log_probs[prompt, answers],
            log_probs_old=old[prompt, answers],
            log_probs_sampler=sampled[prompt, answers],
            log_probs_ref=None,
            advantages=advantages[alike].flatten(0, 1),
            mask=mask,
            totals=totals,
        )
        # Sums over tokens whose denominators are the same: batches side by side, each weighed.
        weights = probability[alike].repeat_interleave(places)[:, None]
        loss = loss + objective.aggregate(weights * token_losses(objective, tokens), mask, totals)
    (gradient,) = torch.autograd.grad(-loss, logits)
    return gradient


def token_losses(objective: Objective, tokens: TokenBatch) -> Tensor:
    """As the train scripts put it together."""
    log_ratio = objective.log_ratio(tokens.log_probs, tokens.log_probs_old, tokens.mask)
    surrogate, _ = objective.surrogate(log_ratio, tokens)
    if objective.correction is not None:
        surrogate = objective.correction(tokens) * surrogate
    return surrogate


def gradient_of(value: Callable[[World, Tensor], Tensor], world: World, logits: Tensor) -> Tensor:
    """Of a stated objective, a function of the log-probs of all answers (prompts x answers)."""
    logits = logits.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(world, world.log_probs(logits).sum(dim=-1)), logits)
    return gradient


def expected_reward(world: World, log_probs: Tensor) -> Tensor:
    """The mean over prompts of E[R]."""
    rewards = torch.stack([world.rewards(prompt) for prompt in range(world.prompts)])
    return (log_probs.exp() * rewards).sum() / world.prompts
