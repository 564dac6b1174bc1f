"""The comparison in the terminal, and the texts of its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from common.printable import printable
from common.views.compare.groups import RunGroup, Spread, differences
from common.views.compare.runs import ComparedRun

MISSING = "-"
# Longer values stand below one another.
_ONE_LINE = 45


@dataclass(frozen=True)
class Column:
    """What the table says of a run."""

    title: str
    metric: str
    value: Callable[[ComparedRun], int | float | None]
    text: Callable[[int | float], str]

    def cell(self, run: ComparedRun) -> str:
        value = self.value(run)
        return MISSING if value is None else self.text(value)

    def spread(self, runs: Sequence[ComparedRun]) -> Spread | None:
        """Over the seeds that have a value."""
        values = [value for value in map(self.value, runs) if value is not None]
        return Spread.of(values) if values else None


def duration(seconds: int | float) -> str:
    """Minutes and seconds, and hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def amount(count: int | float) -> str:
    """A count to the last one, or in millions if there are that many."""
    return f"{count:,.0f}" if count < 999_999.5 else f"{count / 1e6:,.2f} M"


def _metric(title: str, metric: str, best: bool = False) -> Column:
    def value(run: ComparedRun) -> float | None:
        return run.best(metric) if best else run.final(metric)

    return Column(title, metric, value, "{:.3f}".format)


COLUMNS = (
    _metric("accuracy final", "eval/accuracy"),
    _metric("accuracy best", "eval/accuracy", best=True),
    _metric("held-out return", "eval/returns_mean"),
    _metric("return final", "rollouts/returns_mean"),
    _metric("return best", "rollouts/returns_mean", best=True),
    Column("time", "time/step_s", lambda run: run.end.seconds, duration),
    Column("tokens", "rollouts/completion_tokens_mean", lambda run: run.end.tokens, amount),
)


def progress(run: ComparedRun) -> str:
    """Batches done; of how many, if the run has not finished."""
    done = f"{run.end.batch:.0f}"
    return done if run.finished else f"{done}/{run.config.get('max_steps')}"


def group_lines(groups: Sequence[RunGroup]) -> list[Text]:
    """The number that each group has in the tables, and its name."""
    width = len(str(len(groups)))
    return [
        Text(f"{number:>{width}}  {printable(group.label)}")
        for number, group in enumerate(groups, start=1)
    ]


def results_table(groups: Sequence[RunGroup]) -> Table:
    """A line per run; below several seeds, their mean and standard deviation."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for title in ("", "seed", "batches", *(column.title for column in COLUMNS)):
        table.add_column(title.replace(" ", "\n"), justify="right", overflow="fold")
    for number, group in enumerate(groups, start=1):
        for run in group.runs:
            seed = Text(printable(str(run.config.get("seed", MISSING))))
            cells = (column.cell(run) for column in COLUMNS)
            table.add_row(str(number), seed, progress(run), *cells)
        if len(group.runs) > 1:
            spreads = [column.spread(group.runs) for column in COLUMNS]
            means = [s and c.text(s.mean) for c, s in zip(COLUMNS, spreads, strict=True)]
            deviations = [s and c.text(s.deviation) for c, s in zip(COLUMNS, spreads, strict=True)]
            table.add_row("", "mean", "", *(cell or MISSING for cell in means), style="bold")
            table.add_row("", "±", "", *(cell or MISSING for cell in deviations))
        table.add_section()
    return table


def differences_table(groups: Sequence[RunGroup]) -> Table:
    """A line per flag that is not the same everywhere: each value with its groups' numbers."""
    table = Table("what differs", "in runs", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, values in differences(groups).items():
        holders: dict[str, list[str]] = {}
        for number, value in enumerate(values, start=1):
            holders.setdefault(value, []).append(str(number))
        texts = [f"{', '.join(numbers)}: {value}" for value, numbers in holders.items()]
        separator = "   " if sum(map(len, texts)) < _ONE_LINE else "\n"
        table.add_row(Text(printable(name)), Text(printable(separator.join(texts))))
    return table
