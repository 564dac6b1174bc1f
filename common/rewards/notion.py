"""What is right: that of which a function's score is high enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.rewards.outcome import Failure, Outcome

if TYPE_CHECKING:
    from common.rewards.reward import Scorer


@dataclass(frozen=True)
class Notion:
    """What is right: that of which a function's score is at least the threshold."""

    function: Scorer
    threshold: float = 1.0

    def holds(self, outcome: Outcome) -> bool:
        """Nothing is right where the function does not apply, or fails."""
        return isinstance(outcome, float | int) and outcome >= self.threshold

    def score(self, outcome: Outcome) -> Outcome:
        """As a reward, which pays 1 for what is right; it applies where the function does."""
        if outcome is None or isinstance(outcome, Failure):
            return outcome
        return float(self.holds(outcome))
