"""Packages that some runs need and others do not."""

from __future__ import annotations

import importlib.util

from common.errors import UserError

# What pip is told, where that is not the package's own name.
_INSTALLED_AS = {
    "bitsandbytes": "-e '.[quant]'",
    "dotenv": "python-dotenv",
    "optuna": "-e '.[sweep]'",
    "peft": "-e '.[lora]'",
    "wandb_workspaces": "-e '.[wandb-dashboards]'",
}


def require(package: str, wanted_by: str, instead: str = "") -> None:
    """Raise `UserError` if a package is not installed that a flag or a command needs.

    `instead` is what to do without it.
    """
    if importlib.util.find_spec(package) is None:
        remedy = f"run pip install {_INSTALLED_AS.get(package, package)}"
        name = package.replace("_", "-")
        raise UserError(f"{wanted_by}: needs {name}; {remedy}" + (instead and f", or {instead}"))
