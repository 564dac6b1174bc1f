"""Write a run's model with its adapters merged in: `make merge-lora RUN=<run or checkpoint>`."""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import UserError
from common.models.load import UntrustedCodeError
from common.models.merge_lora import merge
from common.packages import require
from common.run.checkpoint import newest_first
from common.run.directory import read_config, run_at

_ADAPTERS = "adapter_config.json"


def find_adapters(run: Path) -> Path:
    """The checkpoint itself, or the newest of a run. Raises `UserError` if it has no adapters."""
    if not run.is_dir():
        raise UserError(f"RUN={run}: no such directory; give a run or one of its checkpoints")
    is_run = (run / "metrics.jsonl").is_file()
    checkpoints = run_at(run).checkpoints if is_run else run / "checkpoints"
    checkpoint = [*newest_first(checkpoints), run][0]
    if (checkpoint / _ADAPTERS).is_file():
        return checkpoint
    if (checkpoint / "model.safetensors").is_file():
        raise UserError(f"RUN={run}: {checkpoint.name} is a whole model already; use it as it is")
    raise UserError(f"RUN={run}: it holds no adapters; give a run that trained with --lora-rank")


def trusts_code(run: Path, checkpoint: Path) -> bool:
    """Whether the run trained with --trust-remote-code; a checkpoint below no run is not known to.

    Raises `UserError` for a config.json that is damaged.
    """
    for directory in (run, checkpoint.parents[1]):
        if (directory / "config.json").is_file():
            return read_config(directory / "config.json").get("trust_remote_code") is True
    return False


def main(arguments: list[str]) -> None:
    require("peft", "make merge-lora")
    if len(arguments) != 1:
        raise UserError("RUN: missing; run make merge-lora RUN=<run directory or checkpoint>")
    run = Path(arguments[0]).absolute()
    checkpoint = find_adapters(run)
    try:
        merged = merge(checkpoint, trust_remote_code=trusts_code(run, checkpoint))
    except UntrustedCodeError:
        raise UserError(
            f"RUN={run}: the model that it adapts comes with code of its own, which runs here if "
            "the run trained with --trust-remote-code; name the directory of such a run, with its "
            "config.json"
        ) from None
    sys.stdout.write(f"merged model: {merged}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
