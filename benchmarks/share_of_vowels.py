"""A reward that hardly ever says the same of two completions, so that all are learned from."""

from __future__ import annotations

from common.tasks.task import Task
from common.tools.toolbox import instant


@instant
def share_of_vowels(completion: str, task: Task) -> float:
    del task
    return sum(map(completion.count, "aeiou")) / max(1, len(completion))
