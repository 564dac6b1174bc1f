"""Sampling by an engine that holds a copy of the policy's weights."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from common.models.export import write_weights
from common.models.log_probs import TokenLogProbs
from common.rollout.generate import evaluation_mode
from common.rollout.generator import Completion, Interrupted, Request
from common.rollout.sampling import Sampling, StreamKey

# Tokens that are compared after each change of weights.
CHECKED_TOKENS = 8

# Nats. Two engines differ by 2e-5 in float32 and by some hundredths in bfloat16, an engine with a
# head that was left behind by tenths.
MOST_MISMATCH = 1e-3
MOST_MISMATCH_BFLOAT16 = 0.2

# Nats by which the learner must have moved for the engine to be asked whether it has.
ROUNDING = 1e-4
ROUNDING_BFLOAT16 = 0.1


class Added(NamedTuple):
    """A request to an engine."""

    name: str
    prompt_ids: list[int]
    seed: int
    max_tokens: int


class Sampled(NamedTuple):
    """What an engine has sampled for a request since it said so last."""

    name: str
    token_ids: list[int]
    log_probs: list[float]
    num_cached: int | None
    """Tokens of the prompt that it had read already; None if it does not say."""


@runtime_checkable
class Engine(Protocol):
    """Where tokens are sampled. Every method raises `UserError` for an engine that fails."""

    name: str
    """As `--sampler` has it."""

    def load(self, path: Path, version: int, *, is_adapter: bool) -> None:
        """Take weights, or an adapter, from a directory."""
        ...

    def begin(self) -> None:
        """Be awake, and forget what was read before: by other weights, or of other batches."""
        ...

    def step(
        self, added: Sequence[Added], dropped: Sequence[str], temperature: float
    ) -> list[Sampled]:
        """Take in and drop requests, and sample on; returns when there is news of any.

        Of those that are dropped some have come to their end.
        """
        ...

    def rest(self) -> None:
        """There is nothing to sample until the next `begin`."""
        ...

    def end(self) -> None: ...


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max())


class EngineGenerator:
    """Decodes with an engine, from copies of the policy's weights.

    Tokens come as they are sampled, so that whatever ends a turn in the local decode loop ends it
    here, at the same token. What conversations have read is kept by the engine.
    """

    def __init__(
        self,
        engine: Engine,
        policy: TokenLogProbs,
        stop_ids: frozenset[int],
        max_length: int,
        *,
        probe: Sequence[int],
        scratch: Path,
        has_adapters: bool = False,
        ends_turn: Callable[[Sequence[int]], bool] = lambda token_ids: False,
        turn_ending_ids: frozenset[int] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """As `LocalGenerator`. After each change of weights, which pass through the directory
        `scratch`, the engine continues `probe`, whose log-probs must be the learner's."""
        self.engine = engine
        self.policy = policy
        self.stop_ids = stop_ids
        self.max_length = max_length
        self.ends_turn = ends_turn
        self.turn_ending_ids = turn_ending_ids
        self.interrupted = interrupted
        self.version = -1
        """Optimizer steps after which the weights were loaded; -1 if none were."""
        self._probe = tuple(probe)
        self._scratch = scratch
        self._has_adapters = has_adapters
        self._names = map(str, count())
        self._num_prompt_tokens = self._num_cached_tokens = 0
        self._synced: dict[str, float] = {}
        self._checked: dict[float, tuple[list[int], Tensor]] = {}
        """By temperature what was compared last, and how likely it was to the learner."""

    def load(self, version: int) -> None:
        """Sample from the policy's weights as they are, those of so many optimizer steps.

        Raises `UserError` where the log-probs of what is sampled then are not the learner's, and
        where weights cannot be written to where the engine looks for them.
        """
        if version == self.version:
            return
        started = time.perf_counter()
        target = self._scratch / f"version_{version}"
        num_bytes = write_weights(self.policy.model, target)
        self.engine.load(target, version, is_adapter=self._has_adapters)
        shutil.rmtree(target)
        self._check(version)
        self.version = version
        seconds = time.perf_counter() - started
        self._synced = {"perf/weight_sync_s": seconds, "perf/weight_sync_mb": num_bytes / 1e6}

    def _check(self, version: int) -> None:
        """The engine continues the probe by its likeliest tokens, and by some that are drawn at the
        temperature of the run: of those it is less sure, so that other weights show in them."""
        counts = self._num_prompt_tokens, self._num_cached_tokens
        for temperature in (0.0, self.policy.temperature):
            request = Request(self._probe, StreamKey(0, 0, 0, 0), CHECKED_TOKENS)
            with self._decoding(Sampling(temperature), _Endings()) as decoding:
                decoding.add(0, request)
                finished: list[tuple[int, Completion]] = []
                while not finished:
                    finished = decoding.advance()
            ((_, completion),) = finished
            self._compare(version, temperature, completion)
        self._num_prompt_tokens, self._num_cached_tokens = counts

    def _compare(self, version: int, temperature: float, completion: Completion) -> None:
        own = self._log_probs(completion.token_ids, temperature or 1.0)
        said = torch.tensor(completion.log_probs, device=own.device)
        mismatch = _largest(own - said)
        bound, rounding = (
            (MOST_MISMATCH_BFLOAT16, ROUNDING_BFLOAT16)
            if self.policy.use_bfloat16
            else (MOST_MISMATCH, ROUNDING)
        )
        what = f"with the weights of optimizer step {version} a log-prob of the engine is"
        if not mismatch <= bound:
            raise UserError(
                f"--sampler {self.engine.name}: {what} {mismatch:.3g} nats from the learner's (at "
                f"most {bound:g}), so that it samples from another model; use --sampler local"
            )
        token_ids, before = self._checked.get(temperature, ([], own))
        self._checked[temperature] = (completion.token_ids, own)
        if completion.token_ids != token_ids or _largest(own - before) < rounding:
            return
        if (old := _largest(before - said)) < mismatch:
            raise UserError(
                f"--sampler {self.engine.name}: {what} {mismatch:.3g} nats from the learner's and "
                f"{old:.3g} from what it was before, so that the engine has kept the old ones; use "
                "--sampler local"
            )

    @torch.no_grad()
    def _log_probs(
        self, completion_ids: Sequence[int], temperature: float
    ) -> Float[Tensor, " tokens"]:
        """Of what follows the probe, under the learner."""
        model = self.policy.model
        token_ids = torch.tensor([[*self._probe, *completion_ids]], device=model.device)
        with (
            evaluation_mode(model),
            torch.autocast(model.device.type, torch.bfloat16, enabled=self.policy.use_bfloat16),
        ):
            logits = model(input_ids=token_ids).logits[0, len(self._probe) - 1 : -1].float()
        log_probs = torch.log_softmax(logits / temperature, dim=-1)
        return log_probs.gather(-1, token_ids[0, len(self._probe) :, None])[:, 0]

    @contextmanager
    def decoding(self, sampling: Sampling) -> Iterator[EngineDecoding]:
        endings = _Endings(self.stop_ids, self.ends_turn, self.turn_ending_ids)
        with self._decoding(sampling, endings) as decoding:
            yield decoding
        self.engine.rest()

    @contextmanager
    def _decoding(self, sampling: Sampling, endings: _Endings) -> Iterator[EngineDecoding]:
        self.engine.begin()
        decoding = EngineDecoding(self, sampling, endings)
        yield decoding
        decoding.stop()

    def next_name(self) -> str:
        return next(self._names)

    def count_prompt(self, num_tokens: int, num_cached: int) -> None:
        self._num_prompt_tokens += num_tokens
        self._num_cached_tokens += num_cached

    def metrics(self) -> Mapping[str, float]:
        """What it cost since this was asked last to change weights, and what was cached."""
        metrics = dict(self._synced)
        if self._num_prompt_tokens:
            share = self._num_cached_tokens / self._num_prompt_tokens
            metrics["perf/cached_prompt_fraction"] = share
        self._synced, self._num_prompt_tokens, self._num_cached_tokens = {}, 0, 0
        return metrics


@dataclass(frozen=True)
class _Endings:
    """At which token a completion ends."""

    stop_ids: frozenset[int] = frozenset()
    ends_turn: Callable[[Sequence[int]], bool] = lambda token_ids: False
    turn_ending_ids: frozenset[int] | None = frozenset()

    def reached(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these is one."""
        last = token_ids[-1]
        if last in self.stop_ids:
            return True
        asks = self.turn_ending_ids is None or last in self.turn_ending_ids
        return asks and self.ends_turn(token_ids)


@dataclass
class _Row:
    number: int
    prompt_length: int
    budget: int
    reason_at_budget: str
    completion: Completion = field(default_factory=Completion)

    def take(self, sampled: Sampled, endings: _Endings) -> None:
        """Add tokens up to the one at which the completion ends."""
        completion = self.completion
        for token, log_prob in zip(sampled.token_ids, sampled.log_probs, strict=True):
            completion.token_ids.append(token)
            completion.log_probs.append(log_prob)
            if endings.reached(completion.token_ids):
                completion.stop_reason = "stop"
            elif len(completion.token_ids) == self.budget:
                completion.stop_reason = self.reason_at_budget
            if completion.stop_reason:
                return


class EngineDecoding:
    """Requests that an engine continues, each from the step on that follows its adding."""

    def __init__(self, generator: EngineGenerator, sampling: Sampling, endings: _Endings) -> None:
        self._generator = generator
        self._sampling = sampling
        self._endings = endings
        self._waiting: list[tuple[int, Request]] = []
        self._rows: dict[str, _Row] = {}
        self._ended: list[str] = []

    def add(self, number: int, request: Request) -> None:
        self._waiting.append((number, request))

    def forget(self, number: int) -> None:
        """Engines forget by themselves what nobody has read for long."""

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting)

    def advance(self) -> list[tuple[int, Completion]]:
        if self._generator.interrupted():
            raise Interrupted
        added, finished = self._admit()
        if not self._rows:
            return finished
        for sampled in self._step(added):
            row = self._rows[sampled.name]
            if not row.completion.token_ids and sampled.num_cached is not None:
                self._generator.count_prompt(row.prompt_length, sampled.num_cached)
            row.take(sampled, self._endings)
            if row.completion.stop_reason:
                self._ended.append(sampled.name)
                finished.append((row.number, row.completion))
                del self._rows[sampled.name]
        return finished

    def _admit(self) -> tuple[list[Added], list[tuple[int, Completion]]]:
        """What the engine is to begin, and those whose prompt fills the context."""
        added: list[Added] = []
        without_room: list[tuple[int, Completion]] = []
        for number, request in self._waiting:
            prompt = list(request.prompt_ids)
            room = self._generator.max_length - len(prompt)
            budget = min(room, request.max_new_tokens)
            reason = "length" if request.max_new_tokens <= room else "context"
            if budget <= 0:
                without_room.append((number, Completion(stop_reason=reason)))
                continue
            name = self._generator.next_name()
            self._rows[name] = _Row(number, len(prompt), budget, reason)
            added.append(Added(name, prompt, request.stream.number, budget))
        self._waiting = []
        return added, without_room

    def stop(self) -> None:
        """Let the engine drop all that it is working on."""
        self._ended += self._rows
        self._rows, self._waiting = {}, []
        if self._ended:
            self._step([])

    def _step(self, added: Sequence[Added]) -> list[Sampled]:
        ended, self._ended = self._ended, []
        return self._generator.engine.step(added, ended, self._sampling.temperature)
