"""The fake W&B server with as much of sweeps as `wandb sweep` and `wandb agent` need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tests.fake_wandb_server import ENTITY, FakeWandbServer

SWEEP = "sweep001"


class FakeSweepServer(FakeWandbServer):
    """Holds one sweep, and hands its agents the given trials, one at a time, in their order.

    The search itself is W&B's affair, so the trials are not drawn from the sweep's parameters.
    """

    def __init__(self, trials: Sequence[Mapping[str, Any]], refuses_runs: bool = False) -> None:
        self.sweep: dict[str, Any] = {}
        self._refuses_runs = refuses_runs
        self._waiting = dict(enumerate(trials))
        super().__init__()

    def answer_query(self, operation: str, values: Mapping[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket" and self._refuses_runs:
            self.status = 403
            return {}
        if operation == "UpsertSweep":
            self.sweep = dict(values)
            entity = {"id": "E", "name": values["entityName"] or ENTITY}
            project = {"id": "P", "name": values["projectName"], "entity": entity}
            sweep = {"name": SWEEP, "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            sweep = {"id": "S", "config": self.sweep["config"], "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "A"}}}
        if operation == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "A"}, "commands": self._commands(values)}}
        return super().answer_query(operation, values)

    def _commands(self, values: Mapping[str, Any]) -> str:
        """JSON, as all that W&B answers in a string: the next trial, unless one is running."""
        if json.loads(values["runState"]):
            return "[]"
        if not self._waiting:
            return json.dumps([{"type": "exit"}])
        number = min(self._waiting)
        parameters = self._waiting.pop(number)
        command = {
            "type": "run",
            "run_id": f"trial{number}",
            "program": yaml.safe_load(self.sweep["config"])["program"],
            "args": {name: {"value": value} for name, value in parameters.items()},
        }
        return json.dumps([command])
