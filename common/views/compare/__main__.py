"""Compare runs: `make compare RUNS="runs/*/*"`, or `python -m common.views.compare RUNS...`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from common.command import run_command
from common.errors import UserError
from common.packages import require
from common.printable import printable
from common.run.files import replace_text
from common.views.compare.charts import SECTIONS
from common.views.compare.groups import RunGroup, best_first, group_by_seed
from common.views.compare.page import html_page
from common.views.compare.runs import ComparedRun, projects_of, read_runs
from common.views.compare.table import differences_table, group_lines, results_table


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs of any experiments: a table here, and a page of curves for the browser."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")] = ()
    """Run directories, directories of runs, or patterns such as "runs/*/*"."""
    output: Path | None = None
    """Where the page goes. Default: compare.html in the directory that holds all the runs'
    experiments."""
    wandb_report: bool = False
    """Also save a report of the runs' W&B projects (needs the extra [wandb-dashboards] and an
    account)."""
    wandb_entity: str | None = None
    """User or team that owns the projects. Default: that of the account."""
    projects: tuple[str, ...] = ()
    """The report's projects. Default: those that the runs were logged to."""


def main(config: CompareConfig) -> None:
    require("plotly", "make compare")
    console = Console()
    runs, complaints = read_runs(config.runs)
    groups, metric = best_first(group_by_seed(runs))
    if metric is not None:
        console.print(f"best first, by the last {metric}", highlight=False)
    for line in group_lines(groups):
        console.print(line, soft_wrap=True)
    console.print(results_table(groups))
    if len(groups) > 1:
        console.print(differences_table(groups))
    for complaint in complaints:
        console.print(f"passed over: {printable(complaint)}", markup=False, soft_wrap=True)
    page = config.output or common_root(runs) / "compare.html"
    write_page(page, groups)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    if config.wandb_report:
        console.print(f"report: {wandb_report(config, runs)}", markup=False, soft_wrap=True)


def wandb_report(config: CompareConfig, runs: Sequence[ComparedRun]) -> str:
    """The address of the report. Raises `UserError` if it cannot be made or saved."""
    require("wandb_workspaces", "--wandb-report")
    from common.logger.wandb_report import save_report

    return save_report(config.projects or projects_of(runs), config.wandb_entity, SECTIONS)


def common_root(runs: Sequence[ComparedRun]) -> Path:
    """Where the runs of all experiments are: `<root>/<experiment>/<run>`."""
    return Path(os.path.commonpath([run.path.parents[1] for run in runs]))


def write_page(path: Path, groups: Sequence[RunGroup]) -> None:
    """Raises `UserError` if nothing can be written there."""
    try:
        replace_text(path, html_page(groups, path.parent))
    except OSError as error:
        raise UserError(
            f"--output {path}: cannot write there ({error.strerror}); choose another"
        ) from None


if __name__ == "__main__":
    run_command(main, CompareConfig)
