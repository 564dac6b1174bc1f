"""What a run achieved, read back from its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.printable import printable
from common.run.directory import Run
from common.run.files import read_rows

_ACHIEVED = (
    ("accuracy", "eval/accuracy", "{:.1%}"),
    ("return", "eval/returns_mean", "{:.3f}"),
    ("answer tags", "eval/format_rate", "{:.1%}"),
)


def before_and_after(run: Run) -> str:
    """Held-out accuracy and return of the first and the last evaluation, and completions of both.

    Empty in a process that does not write the run, and cannot know whether the rows are there yet.
    """
    if not run.writes:
        return ""
    directory = run.directory
    evaluations = [row for row in read_rows(directory.metrics_file) if "eval/accuracy" in row]
    if not evaluations:
        return f"run: {directory.path}"
    first, last = evaluations[0], evaluations[-1]
    lines = [
        "",
        "held-out "
        + ", ".join(
            f"{title} {template.format(first[name])} -> {template.format(last[name])}"
            for title, name, template in _ACHIEVED
            if name in first and name in last
        ),
    ]
    samples = [row for row in read_rows(directory.samples_file) if row.get("split") == "held out"]
    by_task: dict[tuple[str, str], list[str]] = {}
    for label, index in (("before: ", 0), ("after:  ", -1)):
        for row in samples:
            if row["step"] == samples[index]["step"]:
                said = by_task.setdefault((row["question"], row["ground_truth"]), [])
                said.append(f"  {label}{_one_line(row)}")
    for (question, answer), said in by_task.items():
        lines += [printable(f"\n{question}  ({answer})"), *said]
    return "\n".join([*lines, "", f"run: {directory.path}"])


def _one_line(row: Mapping[str, Any]) -> str:
    """A conversation with what its tools replied."""
    messages = row.get("conversation", [{"content": row["completion"]}])
    return printable("  →  ".join(" ".join(message["content"].split()) for message in messages))
