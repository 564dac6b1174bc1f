"""What a reward function says of a completion, and what there is where it says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from common.rewards.transcript import Transcript
from common.tasks.task import Task

# None: the function does not apply to the task.
RewardFunction = Callable[[Transcript, Task], float | None]


@runtime_checkable
class OfBatch(Protocol):
    """A reward function that had rather be asked for a batch at once."""

    def __call__(self, completion: Transcript, task: Task) -> float | None: ...

    def of_batch(
        self,
        completions: Sequence[Transcript],
        tasks: Sequence[Task],
        meanwhile: Callable[[], object],
    ) -> Sequence[float | None]:
        """`meanwhile` is called while there is one to wait for."""
        ...


@dataclass(frozen=True)
class Failure:
    """Why there is no score for a completion."""

    source: str
    """The function, as the user named it."""
    what: str
    """What came of it."""
    kind: Literal["reward_error", "reward_timeout"] = "reward_error"

    @property
    def text(self) -> str:
        return f"{self.source}: {self.what}"

    @property
    def remedy(self) -> str:
        return "raise --reward-timeout or mend it" if self.kind == "reward_timeout" else "mend it"


Outcome = float | None | Failure
