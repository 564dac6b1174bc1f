"""The W&B report: what is built of it offline, and what would be sent to save it."""

# wandb-workspaces exports what it documents without listing it.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
from wandb.sdk.lib import wbauth
from wandb_workspaces.reports.v2 import interface

from common.errors import UserError
from common.logger.wandb_report import build_report, save_report
from common.views.compare.charts import SECTIONS

PROJECTS = [f"project_{number}" for number in range(6)]


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(interface, "_get_api", refuse)


def test_a_report_has_a_grid_per_section_with_all_projects_and_needs_no_network(no_network):
    report = build_report(PROJECTS, "me", SECTIONS)
    assert (report.entity, report.project) == ("me", "project_0")
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    titles = [block.text for block in report.blocks if isinstance(block, wr.H2)]
    assert titles == list(SECTIONS)
    assert len(grids) == 6
    for grid in grids:
        assert [(set_.entity, set_.project) for set_ in grid.runsets] == [
            ("me", project) for project in PROJECTS
        ]
    panels = [panel for grid in grids for panel in grid.panels if isinstance(panel, wr.LinePlot)]
    drawn = {metric: panel.x for panel in panels for metric in panel.y}
    assert drawn["eval/accuracy"] == "rollouts/batch_step"
    assert drawn["time/step_s"] == "rollouts/batch_step"
    assert drawn["training_step/loss"] == "training_step/global_step"
    assert list(drawn) == [metric for metrics in SECTIONS.values() for metric in metrics]


def answer_like_a_server(monkeypatch, sent: list[dict], missing: str = "") -> None:
    def execute(api: object, query: object, variables: dict) -> dict:
        if "spec" in variables:
            sent.append(variables)
            return {"upsertView": {"view": {**view, "displayName": variables["displayName"]}}}
        name = variables["projectName"]
        return {"project": None if name == missing else {"internalId": f"id of {name}"}}

    view = {
        **{
            "id": "VmlldzoxMjM=",
            "name": "x",
            "description": "",
            "createdAt": "2026-01-01T00:00:00Z",
        },
        **{"updatedAt": "2026-01-01T00:00:00Z", "spec": json.dumps({"blocks": []})},
        "project": {"name": "project_0", "entityName": "me"},
    }
    api = SimpleNamespace(
        projects=lambda entity: [SimpleNamespace(name=name) for name in PROJECTS],
        client=SimpleNamespace(app_url="https://wandb.example"),
        default_entity="team",
    )
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface, "_get_api", lambda: api)
    monkeypatch.setattr(wandb, "Api", lambda timeout: api)
    monkeypatch.setattr(wbauth, "authenticate_session", lambda **kwargs: "key")


def test_what_is_sent_names_axes_projects_and_the_group_of_the_seeds(monkeypatch):
    sent: list[dict] = []
    answer_like_a_server(monkeypatch, sent)
    address = save_report(PROJECTS, None, SECTIONS)
    assert address.startswith("https://wandb.example/team/project_0/reports/")
    (variables,) = sent
    assert (variables["entityName"], variables["projectName"]) == ("team", "project_0")
    blocks = json.loads(variables["spec"])["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == len(SECTIONS)
    for grid, metrics in zip(grids, SECTIONS.values(), strict=True):
        runsets = grid["runSets"]
        assert [(r["project"]["name"], r["project"]["entityName"]) for r in runsets] == [
            (project, "team") for project in PROJECTS
        ]
        assert {json.dumps(r["grouping"]) for r in runsets} == {
            json.dumps([{"section": "run", "name": "group"}])
        }
        panels = grid["panelBankSectionConfig"]["panels"]
        configs = [panel["config"] for panel in panels]
        assert [config["metrics"] for config in configs] == [[metric] for metric in metrics]
        steps = [metric.startswith(("training_step/", "correction/")) for metric in metrics]
        assert [config["xAxis"] for config in configs] == [
            "training_step/global_step" if is_step else "rollouts/batch_step" for is_step in steps
        ]
        places = [(p["layout"]["x"], p["layout"]["y"]) for p in panels]
        assert places == [(0, 0), (8, 0), (16, 0), (0, 6)][: len(metrics)]


def test_a_project_that_is_not_there_is_one_line(monkeypatch):
    answer_like_a_server(monkeypatch, [], missing="project_3")
    with pytest.raises(UserError, match=r"project 'me/project_3' not found.*; check --projects"):
        save_report(PROJECTS, "me", SECTIONS)
