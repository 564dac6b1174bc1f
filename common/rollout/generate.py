"""Token ids in, token ids out: a batched decode loop over any causal language model."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
import transformers
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from common.errors import UserError
from common.models.adapters_merged import adapters_merged
from common.rollout.decode_batch import DecodeBatch
from common.rollout.generator import Completion, Interrupted, Request
from common.rollout.sampling import Sampling, sample_tokens
from common.rollout.written import Written

# Dropping finished rows moves others into their places, so it waits until this share has finished.
COMPACT_FRACTION = 1 / 8

# Rows that read together have at most this many times as much to read as one another.
MOST_PADDING = 1.5

# Joining copies the cache of all rows, so requests wait until they are this share of those at work.
JOIN_FRACTION = 1 / 2

# ... but no longer than this many tokens.
JOIN_PATIENCE = 8

# What a sampled token may mean for its row, as bits of a byte.
_STOPS, _ASKS, _NO_NUMBER = 1, 2, 4

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
        turn_ending_ids: frozenset[int] | None = None,
        most_rows: int = 0,
        use_bfloat16: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """A completion ends at a stop token, and where `ends_turn` of its tokens says so.

        `ends_turn` is asked after a token that is one of `turn_ending_ids`, after every one if
        they are None. At most `most_rows` requests hold a cache at once, any number if it is 0.
        `interrupted` is asked before every token; once it says so, `Interrupted` is raised.
        """
        self.model = model
        self.stop_ids = stop_ids
        self.max_length = max_length
        self.ends_turn = ends_turn
        self.turn_ending_ids = turn_ending_ids
        self.most_rows = most_rows or sys.maxsize
        self.use_bfloat16 = use_bfloat16
        self.interrupted = interrupted

    def load(self, version: int) -> None:
        """Nothing to do: these are the policy's own weights."""

    def metrics(self) -> Mapping[str, float]:
        return {}

    @contextmanager
    def decoding(self, sampling: Sampling) -> Iterator[LocalDecoding]:
        autocast = torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.use_bfloat16)
        as_one = adapters_merged(self.model)
        with torch.no_grad(), evaluation_mode(self.model), as_one, autocast:
            yield LocalDecoding(self, sampling)

    def marks(self, vocabulary: int) -> UInt8[Tensor, " vocab"]:
        """What each token may mean for the row that samples it."""
        marks = torch.zeros(vocabulary, dtype=torch.uint8)
        marks[[token for token in self.stop_ids if token < vocabulary]] |= _STOPS
        if self.turn_ending_ids is None:
            marks |= _ASKS
        else:
            marks[[token for token in self.turn_ending_ids if token < vocabulary]] |= _ASKS
        return marks.to(self.model.device)


class LocalDecoding:
    """A batch of rows, a token each at a time.

    What several requests have read alike is read once, until they part. Rows that have
    finished leave the batch, and requests that wait take their places. One that goes on where a
    completion of the same number was stopped by `ends_turn` reads only what is new to it. A cache
    that cannot be put together from parts, such as that of a sliding window, has none of this:
    requests wait for the whole batch, and are read from their beginning.

    What is sampled stays on the device. Of each token the host sees a byte per row, that says
    whether the row may end there, and counts by itself what each may sample still. While rows are
    alike it sees besides how many part.
    """

    def __init__(self, generator: LocalGenerator, sampling: Sampling) -> None:
        self._generator = generator
        self._sampling = sampling
        self._waiting: list[tuple[int, Request]] = []
        self._work: _Work | None = None
        self._paused: dict[int, _Paused] = {}
        self._tokens_waited = 0

    @property
    def busy(self) -> bool:
        return self._num_running > 0 or self._num_joining() > 0

    @property
    def _num_running(self) -> int:
        return 0 if self._work is None else self._work.num_running

    def add(self, number: int, request: Request) -> None:
        self._waiting.append((number, request))

    def forget(self, number: int) -> None:
        self._paused.pop(number, None)
        if self._work is not None:
            self._work.pausing.discard(number)

    def advance(self) -> list[tuple[int, Completion]]:
        if self._generator.interrupted():
            raise Interrupted
        without_room = self._admit() if self._may_join() else []
        if self._work is None:
            return without_room
        tokens, finished = self._work.sample(self._sampling)
        if self._work.idle_share >= COMPACT_FRACTION:
            tokens = tokens[self._drop_finished()]
        if self._work is not None:
            self._work.read(tokens)
        return without_room + finished

    def _may_join(self) -> bool:
        """Reading prompts and copying caches is worth it for several rows at once."""
        if self._work is None:
            return bool(self._waiting)
        if not self._waiting or not self._work.batch.can_grow:
            return False
        joining = self._num_joining()
        self._tokens_waited += joining > 0
        enough = joining >= JOIN_FRACTION * self._num_running
        return joining > 0 and (enough or self._tokens_waited > JOIN_PATIENCE)

    def _num_joining(self) -> int:
        """How many of those that wait there is a place for; who goes on has kept one."""
        going_on = sum(number in self._paused for number, _ in self._waiting)
        return going_on + min(self._num_free, len(self._waiting) - going_on)

    @property
    def _num_free(self) -> int:
        pausing = 0 if self._work is None else len(self._work.pausing)
        taken = self._num_running + pausing + len(self._paused)
        return max(0, self._generator.most_rows - taken)

    def _admit(self) -> list[tuple[int, Completion]]:
        """Let those that wait join the batch, as many as there are places for.

        Returns those whose prompt fills the context.
        """
        self._drop_finished()
        self._tokens_waited = 0
        free = self._num_free
        new: list[_Row] = []
        resumed: list[_Row] = []
        without_room: list[tuple[int, Completion]] = []
        without_place: list[tuple[int, Request]] = []
        for number, request in self._waiting:
            room = self._generator.max_length - len(request.prompt_ids)
            if min(room, request.max_new_tokens) <= 0:
                reason = "context" if room <= 0 else "length"
                without_room.append((number, Completion(stop_reason=reason)))
                continue
            paused = self._paused.get(number)
            if paused is not None and paused.row.is_prefix_of(request.prompt_ids):
                resumed.append(_Row(number, request, room))
                continue
            if paused is not None:
                del self._paused[number]
                free += 1
            if len(new) < free:
                new.append(_Row(number, request, room))
            else:
                without_place.append((number, request))
        self._waiting = without_place
        parts: list[tuple[list[_Row], DecodeBatch]] = []
        if new:
            prompts = [row.prompt_ids for row in new]
            parts.append((new, DecodeBatch.read(self._generator.model, prompts)))
        parts += [self._resume(rows) for rows in self._alike(resumed)]
        if parts:
            before = [] if self._work is None else [self._work]
            begun = [_Work.begin(rows, batch, self._generator) for rows, batch in parts]
            self._work = _Work.joined(before + begun)
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
            parts.append(batch.subset(batch.indices([paused.place for _, paused in pairs])))
        batch = DecodeBatch.joined(parts).packed()
        ordered = list(chain.from_iterable(together.values()))
        unread = [row.prompt_ids[paused.row.num_read :] for row, paused in ordered]
        batch.extend(self._generator.model, unread)
        return [row for row, _ in ordered], batch

    def _drop_finished(self) -> Int[Tensor, " kept"] | slice:
        """Take the finished rows out of the batch, and keep those that may go on.

        Returns which rows are left, in their new order.
        """
        work = self._work
        if work is None or not work.idle_share:
            return slice(None)
        if work.pausing:
            places = [n for n, row in enumerate(work.rows) if row.number in work.pausing]
            batch = work.batch.subset(work.batch.indices(places))
            for place, index in enumerate(places):
                row = work.rows[index]
                self._paused[row.number] = _Paused(row, batch, place)
        kept = work.drop_finished()
        if not work.rows:
            self._work = None
        return kept


@dataclass
class _Work:
    """The rows at work, and those that have just finished."""

    rows: list[_Row]
    left: Int[np.ndarray, " rows"]
    """Tokens that each row may sample still; 0 where it has finished."""
    batch: DecodeBatch
    written: Written
    marks: UInt8[Tensor, " vocab"]
    generator: LocalGenerator
    pausing: set[int] = field(default_factory=set)
    """The numbers of finished rows that may go on."""
    reading: Bool[Tensor, " rows"] | None = None
    """Which rows read what they sample; None if it is to be found anew."""

    @classmethod
    def begin(cls, rows: list[_Row], batch: DecodeBatch, generator: LocalGenerator) -> _Work:
        """Rows whose prompts have been read."""
        left = np.array([row.budget for row in rows])
        written = Written.nothing([row.uniforms() for row in rows], batch.logits)
        marks = generator.marks(batch.logits.shape[-1])
        return cls(rows, left, batch, written, marks, generator)

    @staticmethod
    def joined(parts: Sequence[_Work]) -> _Work:
        """All rows, one part after another. None of the parts can be used any longer."""
        if len(parts) == 1:
            return parts[0]
        return _Work(
            [row for part in parts for row in part.rows],
            np.concatenate([part.left for part in parts]),
            DecodeBatch.joined([part.batch for part in parts]),
            Written.joined([part.written for part in parts]),
            parts[0].marks,
            parts[0].generator,
            set().union(*(part.pausing for part in parts)),
        )

    @property
    def num_running(self) -> int:
        return int(np.count_nonzero(self.left))

    @property
    def idle_share(self) -> float:
        return 1 - self.num_running / len(self.rows)

    def sample(
        self, sampling: Sampling
    ) -> tuple[Int[Tensor, " rows"], list[tuple[int, Completion]]]:
        """A token for each row, and the completions that it ends.

        Raises `UserError` where logits are no numbers.
        """
        uniforms = self.written.next_uniforms()
        tokens, log_probs, kept = sample_tokens(self.batch.logits, uniforms, sampling)
        self.written.add(tokens, log_probs)
        # All that the host sees of a token that ends nothing.
        no_number = log_probs.isnan().to(torch.uint8) * _NO_NUMBER
        marks = (self.marks[tokens] | no_number).cpu().numpy()
        if (marks & _NO_NUMBER).any():
            raise UserError(_NO_NUMBERS)
        running = self.left > 0
        if kept is not None:
            sets = kept.arrays()
            for place in np.flatnonzero(running):
                self.rows[place].kept.append(sets[place])
        self.left -= running
        stopped = self._stopped(running, marks)
        return tokens, self._finish(running & (stopped | (self.left == 0)), stopped)

    def _stopped(
        self, running: Bool[np.ndarray, " rows"], marks: UInt8[np.ndarray, " rows"]
    ) -> Bool[np.ndarray, " rows"]:
        """Where a stop token or the end of a turn came."""
        stopped = (marks & _STOPS) > 0
        asking = np.flatnonzero(running & ((marks & _ASKS) > 0))
        if not len(asking):
            return stopped
        for place, token_ids in zip(asking, self._texts(asking), strict=True):
            if self.generator.ends_turn(token_ids):
                stopped[place] = True
                if self.batch.can_grow:
                    self.pausing.add(self.rows[place].number)
        return stopped

    def _finish(
        self, ends: Bool[np.ndarray, " rows"], stopped: Bool[np.ndarray, " rows"]
    ) -> list[tuple[int, Completion]]:
        places = np.flatnonzero(ends)
        if not len(places):
            return []
        log_probs = self.written.log_probs_of(self.batch.indices(places), self._counts(places))
        finished: list[tuple[int, Completion]] = []
        for place, token_ids, scores in zip(places, self._texts(places), log_probs, strict=True):
            row = self.rows[place]
            reason = "stop" if stopped[place] else row.reason_at_budget
            row.completion = Completion(token_ids.tolist(), scores, reason, row.kept)
            finished.append((row.number, row.completion))
        self.left[places] = 0
        self.reading = None
        return finished

    def _texts(self, places: Int[np.ndarray, " some"]) -> list[array[int]]:
        """What rows that are not marked as finished yet have sampled."""
        return self.written.tokens_of(self.batch.indices(places), self._counts(places))

    def _counts(self, places: Int[np.ndarray, " some"]) -> list[int]:
        return [self.rows[place].budget - int(self.left[place]) for place in places]

    def drop_finished(self) -> Int[Tensor, " kept"]:
        """Move rows at work into the places of finished ones; returns where each comes from."""
        running = self.left > 0
        order = np.arange(np.count_nonzero(running))
        holes = ~running[: len(order)]
        order[holes] = len(order) + np.flatnonzero(running[len(order) :])
        kept = self.batch.indices(order)
        if len(order):
            self.batch.keep(kept)
            self.written.keep(kept)
        self.rows = [self.rows[place] for place in order]
        self.left = self.left[order]
        self.pausing.clear()
        self.reading = None
        return kept

    def read(self, tokens: Int[Tensor, " rows"]) -> None:
        """Let the rows at work read what they sampled."""
        if self.reading is None:
            # Without room for padding, what a finished row reads is its own affair.
            reading = (self.left > 0) | (not self.batch.can_grow)
            self.reading = torch.from_numpy(reading).to(tokens.device)
        self.batch.append(self.generator.model, tokens, self.reading)


class _Row:
    """A request that is being continued."""

    def __init__(self, number: int, request: Request, room: int) -> None:
        self.number = number
        self.prompt_ids = request.prompt_ids
        self.budget = min(request.max_new_tokens, room)
        self.reason_at_budget = "length" if request.max_new_tokens <= room else "context"
        self.kept: list[np.ndarray] = []
        self.completion = Completion()
        self._stream = request.stream

    def uniforms(self) -> Float[np.ndarray, " budget"]:
        return self._stream.uniforms(self.budget)

    @property
    def num_read(self) -> int:
        """Tokens in the cache once it has finished: all but the last, which nothing followed."""
        return len(self.prompt_ids) + len(self.completion.token_ids) - 1

    def is_prefix_of(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens go on where the row stopped."""
        so_far = (*self.prompt_ids, *self.completion.token_ids)
        return so_far == tuple(token_ids[: len(so_far)])


@dataclass(frozen=True)
class _Paused:
    """Where the cache of a row is that may go on."""

    row: _Row
    batch: DecodeBatch
    place: int
