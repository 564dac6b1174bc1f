"""Read what a run sampled: `make samples RUN=<run directory>`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.text import Text

from common.command import run_command
from common.errors import UserError
from common.printable import printable
from common.run.files import read_rows

_STYLES = {"user": "bold", "assistant": "green", "tool": "cyan"}
_OWN_LINE = frozenset(
    (
        *("step", "split", "question", "completion", "ground_truth"),
        *("conversation", "calls", "failure"),
    )
)


@dataclass(frozen=True)
class SamplesConfig:
    """Print the sampled conversations of a run."""

    run: tyro.conf.Positional[Path]
    """Run directory, of any experiment."""
    step: int | None = None
    """Only those of this step."""
    split: str | None = None
    """Only those of a split: train, held out or errored."""
    min_reward: float = float("-inf")
    """Only those with at least this reward."""
    max_reward: float = float("inf")
    """Only those with at most this reward."""
    stop_reason: str | None = None
    """Only those that ended for this reason."""
    count: int = 10
    """Print this many, the latest; 0 for all."""


def selected(config: SamplesConfig) -> list[dict[str, Any]]:
    """The rows that were asked for. Raises `UserError` if there is none."""
    path = config.run / "samples.jsonl"
    if not path.is_file():
        raise UserError(f"RUN={config.run}: holds no samples.jsonl; name a run directory")
    rows = [row for row in read_rows(path) if "question" in row]
    reasons = sorted({row["stop_reason"] for row in rows})
    wanted = {"step": config.step, "split": config.split, "stop_reason": config.stop_reason}
    kept = [
        row
        for row in rows
        if config.min_reward <= row["reward"] <= config.max_reward
        and all(value is None or row[name] == value for name, value in wanted.items())
    ]
    if not kept:
        steps = sorted({row["step"] for row in rows})
        raise UserError(
            f"RUN={config.run}: none of its {len(rows)} samples is like that; it has steps "
            f"{', '.join(map(str, steps))} and stop reasons {', '.join(reasons)}"
        )
    return kept[-config.count :] if config.count else kept


def lines_of(row: Mapping[str, Any]) -> Iterator[Text]:
    """A sample as it is read: what was asked, what was written and replied, and the scores."""
    yield _line(f"── step {row['step']}, {row['split']}", "dim")
    yield turn_line("user", row["question"])
    messages = row.get("conversation", [{"role": "assistant", "content": row["completion"]}])
    for message in messages:
        yield turn_line(message["role"], message["content"])
    for call in row.get("calls", []):
        if call["outcome"] != "answered":
            yield failure_line(call["outcome"], call["tool"], call["reply"])
    if "failure" in row:
        yield _line(f"not scored  {row['failure']}", "red")
    scores = "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name not in _OWN_LINE and value is not None
    )
    yield _line(f"right answer {row['ground_truth']}  {scores}\n", "dim")


def _line(text: str, style: str) -> Text:
    return Text(printable(text), style=style)


def turn_line(role: str, content: str) -> Text:
    """What somebody said, beneath the one before."""
    return Text.assemble((f"{role:>9}  ", "dim"), (printable(content), _STYLES[role]))


def failure_line(outcome: str, tool: str, reply: str) -> Text:
    """A call that nothing came of."""
    return _line(f"{outcome:>9}  {tool}: {reply}", "red")


def main(config: SamplesConfig) -> None:
    console = Console()
    for row in selected(config):
        for line in lines_of(row):
            console.print(line, soft_wrap=True)


if __name__ == "__main__":
    run_command(main, SamplesConfig)
