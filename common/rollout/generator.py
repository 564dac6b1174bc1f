"""What continues prompts, whatever does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from common.rollout.sampling import Sampling, StreamKey


@dataclass(frozen=True)
class Request:
    """A prompt to continue with the random numbers of a stream."""

    prompt_ids: tuple[int, ...]
    stream: StreamKey
    max_new_tokens: int


@dataclass
class Completion:
    """The tokens sampled for a request, the stop token included, and why they end.

    `stop_reason` is `stop` (a stop token or a stop string), `length` (`max_new_tokens`) or
    `context` (the sequence would grow beyond the longest length allowed).
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stop_reason: str = ""
    kept: list[np.ndarray] = field(default_factory=list)
    """The ids that a restricted sampler chose each token from."""


class Interrupted(Exception):
    """Somebody asked the run to stop while it was decoding; what was decoded is dropped."""


@runtime_checkable
class Decoding(Protocol):
    """Requests that are being continued together. More can be added at any time."""

    def add(self, number: int, request: Request) -> None:
        """Queue a request; `number` is the caller's name for it."""
        ...

    def advance(self) -> list[tuple[int, Completion]]:
        """Work on for a token; returns what has finished.

        Raises `UserError` where logits are no numbers.
        """
        ...

    def forget(self, number: int) -> None:
        """Keep nothing for a request that would go on from that of this number: there is none."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is a token to sample: not where all that is left waits for a place."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Anything that continues prompts."""

    def load(self, version: int) -> None:
        """Sample from the policy's weights as they are now, after so many optimizer steps."""
        ...

    def decoding(self, sampling: Sampling) -> AbstractContextManager[Decoding]: ...

    def metrics(self) -> Mapping[str, float]:
        """What is to be logged of the time since this was asked last."""
        ...


def generate(
    generator: Generator, requests: Sequence[Request], sampling: Sampling
) -> list[Completion]:
    """Continue all requests to their end; completions in the order of the requests."""
    finished: dict[int, Completion] = {}
    with generator.decoding(sampling) as decoding:
        for number, request in enumerate(requests):
            decoding.add(number, request)
        while decoding.busy:
            for number, completion in decoding.advance():
                finished[number] = completion
                decoding.forget(number)
    return [finished[number] for number in range(len(requests))]
