"""The comparison as a W&B report: one that spans the projects of several experiments.

wandb-workspaces comes with the extra [wandb-dashboards], and is needed here alone.
"""

# wandb-workspaces exports what it documents without listing it.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

import wandb
import wandb_workspaces.reports.v2 as wr
from wandb.sdk.lib import wbauth

from common.errors import UserError
from common.logger.sinks import axis_of

TITLE = "GRPO experiments compared"
# Three charts beside one another fill W&B's grid of 24.
_WIDTH, _HEIGHT = 8, 6
_IN_A_ROW = 3
_TIMEOUT_SECONDS = 20

Sections = Mapping[str, Sequence[str]]
"""Titles, each with the metrics that are drawn below it."""


def build_report(projects: Sequence[str], entity: str, sections: Sections) -> wr.Report:
    """A grid of panels per section, in each all runs of the projects; nothing is sent anywhere.

    Runs of one W&B group are drawn as their mean with a band of a standard deviation: give the
    seeds of a configuration one `--wandb-group`. The report is kept in the first project.
    """
    blocks: list = [wr.TableOfContents()]
    for title, metrics in sections.items():
        runsets = [
            wr.Runset(entity=entity, project=project, name=project, groupby=["group"])
            for project in projects
        ]
        panels: list = [_panel(metric, number) for number, metric in enumerate(metrics)]
        blocks += [wr.H2(title), wr.PanelGrid(runsets=runsets, panels=panels)]
    return wr.Report(
        project=projects[0],
        entity=entity,
        title=TITLE,
        description=f"Runs of {', '.join(projects)} on the same metrics",
        blocks=blocks,
        width="fluid",
    )


def _panel(metric: str, number: int) -> wr.LinePlot:
    row, column = divmod(number, _IN_A_ROW)
    return wr.LinePlot(
        title=metric,
        x=axis_of(metric),
        y=[metric],
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=wr.Layout(x=_WIDTH * column, y=_HEIGHT * row, w=_WIDTH, h=_HEIGHT),
    )


def save_report(projects: Sequence[str], entity: str | None, sections: Sections) -> str:
    """The address of the saved report. Raises `UserError` without an account, or if W&B refuses."""
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    server = settings.base_url
    if not wbauth.authenticate_session(host=server, source="report", prompt=False):
        raise UserError(
            "--wandb-report: saving a report needs a W&B account; run wandb login, which says "
            "where to make one, or put WANDB_API_KEY=<key> into .env"
        )
    try:
        owner = entity or wandb.Api(timeout=_TIMEOUT_SECONDS).default_entity
        if owner is None:
            raise UserError("--wandb-report: the account has no entity; add --wandb-entity")
        return build_report(projects, owner, sections).save().url
    except (wandb.Error, ValueError, OSError) as error:
        # wandb-workspaces has a plain ValueError for a project that is not there.
        reason = " ".join(str(error).split())
        raise UserError(
            f"--wandb-report: {server} did not take it ({reason}); check --projects and "
            "--wandb-entity, and that the runs have been synced"
        ) from None
