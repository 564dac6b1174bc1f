"""Token ids in, token ids out: a batched decode loop over any causal language model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import torch
import transformers
from torch import Tensor

from common.errors import UserError
from common.rollout.decode_batch import DecodeBatch
from common.rollout.generator import Completion, Interrupted, Request
from common.rollout.sampling import Sampling, sample_tokens

# Dropping finished rows copies the cache of the others, so it waits until this share has finished.
COMPACT_FRACTION = 1 / 4

# Rows that read together have at most this many times as much to read as one another.
MOST_PADDING = 1.5

# Joining copies the cache of all rows, so requests wait until they are this share of those at work.
JOIN_FRACTION = 1 / 2

# ... but no longer than this many tokens.
JOIN_PATIENCE = 8

_NO_NUMBERS = (
    "the policy's logits are not numbers (NaN), so that no token can be sampled: its weights have "
    "overflowed; start again with a lower --lr, from the last good checkpoint if you like "
    "(--model-name RUN/checkpoints/step_N)"
)


@contextmanager
def evaluation_mode(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Switch off what transformers does in training mode only, gradient checkpointing above all."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class LocalGenerator:
    """Decodes with the policy itself, all requests in one batch."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        stop_ids: frozenset[int],
        max_length: int,
        *,
        ends_turn: Callable[[Sequence[int]], bool] = lambda token_ids: False,
        use_bfloat16: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """A completion ends at a stop token, and where `ends_turn` of its tokens says so.

        `interrupted` is asked before every token; once it says so, `Interrupted` is raised.
        """
        self.model = model
        self.stop_ids = stop_ids
        self.max_length = max_length
        self.ends_turn = ends_turn
        self.use_bfloat16 = use_bfloat16
        self.interrupted = interrupted

    @contextmanager
    def decoding(self, sampling: Sampling) -> Iterator[LocalDecoding]:
        autocast = torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.use_bfloat16)
        with torch.no_grad(), evaluation_mode(self.model), autocast:
            yield LocalDecoding(self, sampling)


class LocalDecoding:
    """A batch of rows, a token each at a time.

    A prompt that several requests share is read once and its cache repeated. Rows that have
    finished leave the batch, and requests that wait take their places. One that goes on where a
    completion of the same number was stopped by `ends_turn` reads only what is new to it. A cache
    that cannot be put together from parts, such as that of a sliding window, has none of this:
    requests wait for the whole batch, and are read from their beginning.
    """

    def __init__(self, generator: LocalGenerator, sampling: Sampling) -> None:
        self._generator = generator
        self._sampling = sampling
        self._waiting: list[tuple[int, Request]] = []
        self._rows: list[_Row] = []
        self._batch: DecodeBatch | None = None
        self._paused: dict[int, _Paused] = {}
        self._tokens_waited = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or any(not row.finished for row in self._rows)

    def add(self, number: int, request: Request) -> None:
        self._waiting.append((number, request))

    def forget(self, number: int) -> None:
        self._paused.pop(number, None)
        for row in self._rows:
            row.paused = row.paused and row.number != number

    def advance(self) -> list[tuple[int, Completion]]:
        if self._generator.interrupted():
            raise Interrupted
        without_room = self._admit() if self._may_join() else []
        if self._batch is None:
            return without_room
        uniforms = torch.tensor([row.uniform for row in self._rows], dtype=torch.float64)
        device = self._batch.logits.device
        uniforms = uniforms.to(device, torch.float32 if device.type == "mps" else torch.float64)
        tokens, log_probs, kept = sample_tokens(self._batch.logits, uniforms, self._sampling)
        sets = repeat(None, len(self._rows)) if kept is None else kept.arrays()
        finished: list[_Row] = []
        for row, token, log_prob, members in zip(
            self._rows, tokens.tolist(), log_probs.tolist(), sets, strict=True
        ):
            if math.isnan(log_prob):
                raise UserError(_NO_NUMBERS)
            if not row.finished:
                row.take(token, log_prob, members, self._generator)
                if row.finished:
                    finished.append(row)
        self._read(tokens)
        return without_room + [(row.number, row.completion) for row in finished]

    def _may_join(self) -> bool:
        """Reading prompts and copying caches is worth it for several rows at once."""
        if self._batch is None:
            return bool(self._waiting)
        if not self._waiting or not self._batch.can_grow:
            return False
        self._tokens_waited += 1
        running = sum(not row.finished for row in self._rows)
        enough = len(self._waiting) >= JOIN_FRACTION * running
        return enough or self._tokens_waited > JOIN_PATIENCE

    def _admit(self) -> list[tuple[int, Completion]]:
        """Let all that wait join the batch; returns those whose prompt fills the context."""
        self._drop_finished()
        self._tokens_waited = 0
        new: list[_Row] = []
        resumed: list[_Row] = []
        without_room: list[tuple[int, Completion]] = []
        for number, request in self._waiting:
            room = self._generator.max_length - len(request.prompt_ids)
            if min(room, request.max_new_tokens) <= 0:
                reason = "context" if room <= 0 else "length"
                without_room.append((number, Completion(stop_reason=reason)))
                continue
            paused = self._paused.get(number)
            goes_on = paused is not None and paused.row.is_prefix_of(request.prompt_ids)
            (resumed if goes_on else new).append(_Row(number, request, room))
        self._waiting = []
        parts = [self._batch] if self._batch is not None else []
        if new:
            prompts = [row.prompt_ids for row in new]
            parts.append(DecodeBatch.read(self._generator.model, prompts))
        self._rows += new
        for rows in self._alike(resumed):
            ordered, batch = self._resume(rows)
            parts.append(batch)
            self._rows += ordered
        if parts:
            self._batch = DecodeBatch.joined(parts)
        return without_room

    def _alike(self, rows: list[_Row]) -> list[list[_Row]]:
        """Rows that go on, together where they have about as much to read: the rest is padding."""
        unread = {row.number: len(row.prompt_ids) - self._num_read(row) for row in rows}
        groups: list[list[_Row]] = []
        for row in sorted(rows, key=lambda row: unread[row.number]):
            shortest = unread[groups[-1][0].number] if groups else 0
            if unread[row.number] > MOST_PADDING * shortest:
                groups.append([])
            groups[-1].append(row)
        return groups

    def _num_read(self, row: _Row) -> int:
        return self._paused[row.number].row.num_read

    def _resume(self, rows: list[_Row]) -> tuple[list[_Row], DecodeBatch]:
        """The rows in a new order, with the cache of their earlier turns and their prompts read."""
        together: dict[int, list[tuple[_Row, _Paused]]] = {}
        for row in rows:
            paused = self._paused.pop(row.number)
            together.setdefault(id(paused.batch), []).append((row, paused))
        parts: list[DecodeBatch] = []
        for pairs in together.values():
            batch = pairs[0][1].batch
            parts.append(batch.subset(_indices([paused.index for _, paused in pairs], batch)))
        batch = DecodeBatch.joined(parts).packed()
        ordered = list(chain.from_iterable(together.values()))
        unread = [row.prompt_ids[paused.row.num_read :] for row, paused in ordered]
        batch.extend(self._generator.model, unread)
        return [row for row, _ in ordered], batch

    def _read(self, tokens: Tensor) -> None:
        """Let the rows that go on read what they sampled; drop the others once there are many."""
        assert self._batch is not None
        kept = [index for index, row in enumerate(self._rows) if not row.finished]
        if len(self._rows) - len(kept) >= COMPACT_FRACTION * len(self._rows):
            tokens = tokens[_indices(kept, self._batch)]
            self._drop_finished()
        if self._batch is not None:
            # Without room for padding, what a finished row reads is its own affair.
            pausing = self._batch.can_grow
            reading = [not (pausing and row.finished) for row in self._rows]
            self._batch.append(
                self._generator.model, tokens, torch.tensor(reading, device=tokens.device)
            )

    def _drop_finished(self) -> None:
        """Take the finished rows out of the batch, and keep those that may go on."""
        if self._batch is None:
            return
        if self._batch.can_grow:
            pausing = [index for index, row in enumerate(self._rows) if row.paused]
            if pausing:
                batch = self._batch.subset(_indices(pausing, self._batch))
                for place, index in enumerate(pausing):
                    row = self._rows[index]
                    self._paused[row.number] = _Paused(row, batch, place)
        kept = [index for index, row in enumerate(self._rows) if not row.finished]
        if not kept:
            self._batch = None
        elif len(kept) < len(self._rows):
            self._batch.select(_indices(kept, self._batch))
        self._rows = [self._rows[index] for index in kept]


def _indices(places: list[int], batch: DecodeBatch) -> Tensor:
    return torch.tensor(places, dtype=torch.long, device=batch.logits.device)


class _Row:
    """A request that is being continued."""

    def __init__(self, number: int, request: Request, room: int) -> None:
        self.number = number
        self.prompt_ids = request.prompt_ids
        self.completion = Completion()
        self.paused = False
        self._budget = min(request.max_new_tokens, room)
        self._reason_at_budget = "length" if request.max_new_tokens <= room else "context"
        self._uniforms = request.stream.uniforms(self._budget).tolist()

    @property
    def finished(self) -> bool:
        return self.completion.stop_reason != ""

    @property
    def num_read(self) -> int:
        """Tokens in the cache once it has finished: all but the last, which nothing followed."""
        return len(self.prompt_ids) + len(self.completion.token_ids) - 1

    @property
    def uniform(self) -> float:
        """The random number of the next token; a finished row, whose token is dropped, has one."""
        return self._uniforms[min(len(self.completion.token_ids), self._budget - 1)]

    def is_prefix_of(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens go on where the row stopped."""
        so_far = (*self.prompt_ids, *self.completion.token_ids)
        return so_far == tuple(token_ids[: len(so_far)])

    def take(
        self, token: int, log_prob: float, kept: np.ndarray | None, generator: LocalGenerator
    ) -> None:
        completion = self.completion
        if kept is not None:
            completion.kept.append(kept)
        completion.token_ids.append(token)
        completion.log_probs.append(log_prob)
        self.paused = generator.ends_turn(completion.token_ids)
        if self.paused or token in generator.stop_ids:
            completion.stop_reason = "stop"
        elif len(completion.token_ids) == self._budget:
            completion.stop_reason = self._reason_at_budget


@dataclass(frozen=True)
class _Paused:
    """Where the cache of a row is that may go on."""

    row: _Row
    batch: DecodeBatch
    index: int
