"""Sequences as a tree of what they have in common, so that nothing is computed twice.

Completions of a task begin with the same prompt, turns of a conversation with the same history, and
a policy that is sure of itself writes the same answer again. Of equal beginnings a causal model
computes equal states, so that one pass over them is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field

import numpy as np

# A forward pass costs as much as about so many tokens, whatever it reads: what saves less is not
# worth one. Measured on the bundled models on a CPU, forward and backward.
PASS_TOKENS = 128

# Of what is computed side by side at most this share is padding, or as many tokens as a pass costs.
MOST_PADDING = 0.1

_BIG_ENDIAN = ">u4"


@dataclass(frozen=True, eq=False)
class Pass:
    """Pieces of sequences that a model reads side by side, each after what comes before it.

    What is computed in all passes has numbers, its places: row by row, padding included.
    """

    token_ids: np.ndarray
    """int64 `pieces time`, padded on the right with 0."""
    reads: np.ndarray
    """bool `pieces time`: False on padding."""
    past: np.ndarray
    """int64 `pieces before`: the places of all tokens before a piece, padded on the left with 0."""
    remembers: np.ndarray
    """bool `pieces before`: False on padding."""

    @property
    def positions(self) -> np.ndarray:
        """int64 `pieces time`: how many tokens there are before each."""
        return self.remembers.sum(axis=1, keepdims=True) + np.arange(self.reads.shape[1])


@dataclass(frozen=True)
class TokenCounts:
    """How much went through a model."""

    given: int = 0
    """Tokens of all sequences."""
    read: int = 0
    """Those that were computed: what sequences have in common counts once."""
    positions: int = 0
    """With the padding between them."""

    def plus(self, other: TokenCounts, times: int = 1) -> TokenCounts:
        return TokenCounts(
            self.given + times * other.given,
            self.read + times * other.read,
            self.positions + times * other.positions,
        )


@dataclass(frozen=True, eq=False)
class TokenTree:
    """The passes in which sequences are read, and where their tokens are found then."""

    passes: Sequence[Pass]
    places: np.ndarray
    """int64 `sequences time`: the place of each token; 0 on padding."""
    counts: TokenCounts

    @classmethod
    def of(
        cls, sequences: Sequence[np.ndarray], *, shares: bool = True, pass_tokens: int = PASS_TOKENS
    ) -> TokenTree:
        """From token ids, at least one each. Equal sequences are read once.

        So are equal beginnings, where that is worth a pass, unless the model cannot go on from what
        other passes have read: then it `shares` none.
        """
        spelled = [sequence.astype(_BIG_ENDIAN).tobytes() for sequence in sequences]
        rows = {row: np.frombuffer(row, _BIG_ENDIAN).astype(np.int64) for row in sorted({*spelled})}
        distinct = list(rows.values())
        ends = _grow(distinct, pass_tokens) if shares else [_Piece(row) for row in distinct]
        passes: list[Pass] = []
        place = 0
        for together in _side_by_side(_all_pieces(ends), pass_tokens):
            width = max(map(len, together))
            for piece in together:
                piece.path = np.append(piece.past, np.arange(place, place + len(piece)))
                place += width
            passes.append(_read(together))
        end_of = dict(zip(rows, ends, strict=True))
        counts = TokenCounts(
            given=sum(map(len, sequences)),
            read=sum(int(part.reads.sum()) for part in passes),
            positions=place,
        )
        return cls(passes, _padded([end_of[row].path for row in spelled]), counts)


@dataclass(eq=False)
class _Piece:
    """The last tokens of a sequence, which follow those of a parent."""

    sequence: np.ndarray
    parent: _Piece | None = None
    path: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The places of all tokens of the sequence, once the piece is to be read."""

    def __post_init__(self) -> None:
        self.depth: int = self.parent.depth + 1 if self.parent else 0
        self.token_ids = self.sequence[len(self.parent.sequence) if self.parent else 0 :]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def past(self) -> np.ndarray:
        return self.parent.path if self.parent else self.path[:0]


def _grow(rows: Sequence[np.ndarray], pass_tokens: int) -> list[_Piece]:
    """The last piece of each of several distinct sequences, which are in lexicographic order.

    Level by level they get beginnings in common, as long as a level saves more than two passes
    cost: one more to read the beginnings, and one more because what follows them is shorter.
    """
    shared = np.array([0, *map(_in_common, rows, rows[1:])])
    branches: list[tuple[int, int, _Piece | None]] = [(0, len(rows), None)]
    saved = 1
    while saved > 0:
        saved = -2 * pass_tokens
        grown: list[tuple[int, int, _Piece | None]] = []
        for first, last, parent in branches:
            start = len(parent.sequence) if parent else 0
            for begin, end in _best_cut(shared, first, last, start):
                common = int(shared[begin + 1 : end].min(initial=len(rows[begin])))
                saved += (common - start) * (end - begin - 1)
                alone = end - begin == 1
                grown.append(
                    (begin, end, parent if alone else _Piece(rows[begin][:common], parent))
                )
        if saved > 0:
            branches = grown
    return [
        _Piece(row, parent) if parent is None or len(row) > len(parent.sequence) else parent
        for first, last, parent in branches
        for row in rows[first:last]
    ]


def _best_cut(shared: np.ndarray, first: int, last: int, start: int) -> list[tuple[int, int]]:
    """The ranges of rows that save most tokens if the rows of each share one beginning.

    `shared` is how many tokens a row has in common with the row before it; `start` of them are
    shared already.
    """
    ranges = [(first, last)]
    halves: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for begin, end in ranges:
        if end - begin > 1:
            middle = begin + 1 + int(shared[begin + 1 : end].argmin())
            halves[begin, end] = [(begin, middle), (middle, end)]
            ranges += halves[begin, end]
    saved: dict[tuple[int, int], int] = {}
    undivided: set[tuple[int, int]] = set()
    for some in reversed(ranges):
        begin, end = some
        apart = sum(saved[half] for half in halves.get(some, []))
        common = int(shared[begin + 1 : end].min()) if some in halves else start
        together = (common - start) * (end - begin - 1)
        saved[some] = max(apart, together)
        if together > apart or some not in halves:
            undivided.add(some)
    cut = [(first, last)]
    while divided := [some for some in cut if some not in undivided]:
        cut = [some for some in cut if some in undivided]
        cut += [half for some in divided for half in halves[some]]
    return sorted(cut)


def _in_common(some: np.ndarray, others: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(some), len(others))
    differs = some[:length] != others[:length]
    return int(differs.argmax()) if differs.any() else length


def _all_pieces(ends: Iterable[_Piece]) -> list[_Piece]:
    """Those pieces with all that come before them, parents before children, short before long."""
    found: dict[_Piece, None] = {}
    for end in ends:
        piece: _Piece | None = end
        while piece is not None and piece not in found:
            found[piece] = None
            piece = piece.parent
    return sorted(found, key=lambda piece: (piece.depth, len(piece)))


def _side_by_side(pieces: Sequence[_Piece], pass_tokens: int) -> Iterator[list[_Piece]]:
    """Pieces of one depth and of about one length."""
    together: list[_Piece] = []
    num_tokens = 0
    for piece in pieces:
        computed = len(piece) * (len(together) + 1)
        padding = computed - num_tokens - len(piece)
        deeper = bool(together) and piece.depth > together[0].depth
        if deeper or padding > max(pass_tokens, MOST_PADDING * computed):
            yield together
            together, num_tokens = [], 0
        together.append(piece)
        num_tokens += len(piece)
    yield together


def _read(pieces: Sequence[_Piece]) -> Pass:
    pasts = [piece.past[::-1] for piece in pieces]
    return Pass(
        _padded([piece.token_ids for piece in pieces]),
        _filled(pieces),
        np.ascontiguousarray(_padded(pasts)[:, ::-1]),
        np.ascontiguousarray(_filled(pasts)[:, ::-1]),
    )


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows below one another, filled up with 0 on the right."""
    filled = _filled(rows)
    padded = np.zeros(filled.shape, dtype=rows[0].dtype)
    padded[filled] = np.concatenate(rows)
    return padded


def _filled(rows: Sequence[Sized]) -> np.ndarray:
    """Where rows that are filled up on the right hold something of their own."""
    lengths = np.array([len(row) for row in rows])
    return np.arange(lengths.max()) < lengths[:, None]
