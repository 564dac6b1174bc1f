"""The tables and the picture of the comparison with TRL, from its record."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.pages import put_into
from benchmarks.trl_runs import COMPARISONS, GOAL, PHASES, SIDES, Run, per_batch, seconds

COLOURS = {"ours": "tab:blue", "TRL": "tab:orange"}
SHADES = dict(zip(PHASES, (1.0, 0.65, 0.35), strict=True))

# What a table shows of a run; None where a run has no such number.
Measure = Callable[[Run], float | None]


def write(record: Mapping[str, Any], directory: Path) -> None:
    """The tables into `trl.md`, and `trl.png`."""
    page = directory / "trl.md"
    found = {
        name: [Run(**run) for run in comparison["runs"]]
        for name, comparison in record["comparisons"].items()
    }
    for name, runs in found.items():
        put_into(page, name, table(runs, COMPARISONS[name].warm_up))
    put_into(page, "circumstances", circumstances(record["comparisons"]))
    put_into(page, "lines", lines(record["lines"]))
    draw(found, directory / "trl.png")


def table(runs: Sequence[Run], warm_up: int) -> str:
    """Means of either side with the least and the most, and our share of TRL's, run by run."""
    timed = slice(warm_up, None)
    measures: dict[str, tuple[Measure, str]] = {}
    if warm_up:
        measures["timed batches, s"] = (lambda run: sum(map(seconds, run.batches[timed])), ".1f")
    else:
        measures["training, s"] = (lambda run: run.training_seconds, ".1f")
        measures[f"to a mean reward of {GOAL}, s"] = (lambda run: run.seconds_to_goal, ".1f")
        measures["batches until then"] = (lambda run: run.reached, ".0f")
        measures["batches below it later"] = (lambda run: run.batches_below_after, ".0f")
    for phase in PHASES:
        measures[f"a batch: {phase}, s"] = (_of_phase(phase, timed), ".3f")
    measures["peak memory, GB"] = (lambda run: run.peak_gigabytes, ".2f")
    measures["tokens sampled"] = (lambda run: sum(b["tokens"] for b in run.batches[timed]), ",.0f")
    measures["start and end of the process, s"] = (
        lambda run: run.process_seconds - run.training_seconds,
        ".1f",
    )
    rows = [f"| | {' | '.join(SIDES)} | ours / TRL |", "|---|---|---|---|"]
    for title, (measure, form) in measures.items():
        ours, theirs = ([measure(run) for run in runs if run.side == side] for side in SIDES)
        pairs = zip(ours, theirs, strict=False)
        shares = [a / b if a is not None and b else None for a, b in pairs]
        cells = (_spread(ours, form), _spread(theirs, form), _spread(shares, ".2f"))
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _of_phase(phase: str, timed: slice) -> Measure:
    return lambda run: per_batch([run], [phase], timed)


def _spread(found: Sequence[float | None], form: str) -> str:
    known = [value for value in found if value is not None]
    if not known:
        return ""
    low, middle, high = (format(of(known), form) for of in (min, statistics.fmean, max))
    missing = f", {len(found) - len(known)} never" if len(known) < len(found) else ""
    return (middle if low == high else f"{middle} ({low} to {high})") + missing


def circumstances(comparisons: Mapping[str, Any]) -> str:
    """What was run, and on what."""
    rows = ["| | commit | machine | threads | versions |", "|---|---|---|---|---|"]
    for name, comparison in comparisons.items():
        made_of = comparison["made_of"]
        libraries = ("torch", "transformers", "trl", "python")
        versions = ", ".join(f"{library} {made_of[library]}" for library in libraries)
        machine = f"{made_of['machine']}, {made_of['memory_gigabytes']} GB"
        cells = (name, comparison["commit"], machine, str(made_of["threads"]), versions)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def lines(counted: Mapping[str, int]) -> str:
    return "\n".join(
        [
            f"| {' | '.join(['', *SIDES])} |",
            "|---|---|---|",
            f"| lines to follow the loss | {' | '.join(str(counted[side]) for side in SIDES)} |",
        ]
    )


def draw(found: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Reward over time where there are three seeds, and where the time of a batch goes."""
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    _draw_rewards(curves, found.get("bundled", ()))
    _draw_phases(bars, found)
    for axis in (curves, bars):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_rewards(axis: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        ends, elapsed = [], 0.0
        for batch in run.batches:
            ends.append(elapsed + batch["sampling"])
            elapsed += seconds(batch)
        label = run.side if run.seed == runs[0].seed else None
        rewards = [batch["reward"] for batch in run.batches]
        axis.plot(ends, rewards, color=COLOURS[run.side], label=label, linewidth=1.2)
    axis.axhline(GOAL, color="grey", linewidth=0.8, linestyle="--")
    axis.set_title("bundled model: mean reward of a batch", fontsize=10)
    axis.set_xlabel("seconds of training")
    axis.legend(frameon=False, loc="lower right")


def _draw_phases(axis: Axes, found: Mapping[str, Sequence[Run]]) -> None:
    """A bar per side and comparison, in shares of TRL's time."""
    names = list(found)[::-1]
    for position, name in enumerate(names):
        timed = slice(COMPARISONS[name].warm_up, None)
        whole = per_batch([run for run in found[name] if run.side == "TRL"], PHASES, timed)
        for side, offset in zip(SIDES, (0.2, -0.2), strict=True):
            runs, left = [run for run in found[name] if run.side == side], 0.0
            for phase in PHASES:
                share = per_batch(runs, [phase], timed) / whole
                label = f"{side}: {phase}" if position == 0 else None
                axis.barh(
                    position + offset,
                    share,
                    0.36,
                    left,
                    color=COLOURS[side],
                    alpha=SHADES[phase],
                    label=label,
                )
                left += share
    axis.set_yticks(range(len(names)), names)
    axis.set_title("time of a batch, in shares of TRL's", fontsize=10)
    axis.legend(frameon=False, fontsize=7, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.1))
