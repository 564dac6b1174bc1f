"""Search for good flags without a server: `make sweep EXPERIMENT=experiment_base`.

Reads the file that `wandb sweep` reads, and runs its trials on this machine, one after another.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from common.command import run_command
from common.errors import UserError
from common.flags.parsing import parse_config
from common.flags.train_config import TrainConfig, is_directory_name
from common.own_code import code_of_the_user
from common.packages import require
from common.repository import REPOSITORY
from common.sweep.domain import Value
from common.sweep.sweep_file import Sweep, read_sweep


@dataclass(frozen=True)
class SweepConfig:
    """Search for an experiment's best flags. The same command again goes on where it stopped."""

    experiment: tyro.conf.Positional[Path]
    """Directory of the experiment."""
    file: Path | None = None
    """What to search, in W&B's format. Default: sweep.yaml in the experiment's directory."""
    trials: int | None = None
    """Trials in all. Default: run_cap of the file, else the whole grid, else 20."""
    method: Literal["grid", "random", "bayes"] | None = None
    """Search in this way and not in the one of the file."""
    name: str | None = None
    """Name of the sweep. Default: the one in the file, else the file's own."""
    seed: int = 1
    """Seed of what is drawn."""
    log_dir: Path | None = None
    """Root of all runs. Default: runs/ in the repository."""
    storage: Path | None = None
    """SQLite file of the trials. Default: study.db in the sweep's directory."""

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1")


def main(config: SweepConfig) -> None:
    console = Console()
    require("optuna", "make sweep")
    from common.sweep.study import SweepStudy
    from common.sweep.trials import Place, search, show

    directory = find_experiment(config.experiment)
    file = config.file or directory / "sweep.yaml"
    sweep = read_sweep("--file", file, config.method)
    name = config.name or sweep.name or file.stem
    if not is_directory_name(name):
        raise UserError(f"--name {name}: must be letters, digits and . _ - + = alone")
    script = directory / sweep.program
    if not script.is_file():
        raise UserError(f"--file {file}: program: {script} is not there; name the script, train.py")
    config_class = flags_of(script)
    if mistakes := wrong_flags(sweep, config_class):
        raise UserError("\nerror: ".join(f"--file {file}: {mistake}" for mistake in mistakes))
    for field in sweep.ignored:
        console.out(f"{file}: {field} is heeded by W&B alone; here every trial runs to its end")

    log_dir = (config.log_dir or REPOSITORY / "runs").resolve()
    place = Place(directory, log_dir / config_class.experiment, name)
    place.directory.mkdir(parents=True, exist_ok=True)
    storage = config.storage or place.directory / "study.db"
    study = SweepStudy(storage, f"{config_class.experiment}/{name}", sweep, config.seed)
    search(place, sweep, study, sweep.wanted(config.trials), console)
    show(place, sweep, study, console)


def find_experiment(named: Path) -> Path:
    """A directory as it is named from here, else from the repository."""
    for directory in (named, REPOSITORY / named):
        if directory.is_dir():
            return directory.resolve()
    known = sorted(path.parent.name for path in REPOSITORY.glob("*/sweep.yaml"))
    raise UserError(f"EXPERIMENT={named}: no such directory; there are {', '.join(known)}")


def flags_of(script: Path) -> type[TrainConfig]:
    """The `Config` of a train script, which is loaded but not run."""
    spec = importlib.util.spec_from_file_location(f"{script.stem}_of_a_sweep", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where its dataclasses look for their types, and where it finds the files beside it.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(script.parent))
    with code_of_the_user("program", str(script)):
        spec.loader.exec_module(module)
        return module.Config


def wrong_flags(sweep: Sweep, config_class: type[TrainConfig]) -> list[str]:
    """What the experiment would not take of the command and of the values that are searched."""
    ends = {name: domain.ends for name, domain in sweep.parameters.items()}
    longest = max(map(len, ends.values()))
    # Together at first: it is faster, and there are flags that need another one.
    together = (
        {name: values[min(number, len(values) - 1)] for name, values in ends.items()}
        for number in range(longest)
    )
    problems = [problem for each in together if (problem := _problem(config_class, sweep, each))]
    if not problems:
        return []
    if problem := _problem(config_class, sweep, {}):
        return [f"command: {problem}"]
    alone = [
        f"parameter {name}: {problem}"
        for name, values in ends.items()
        for value in values
        if (problem := _problem(config_class, sweep, {name: value}))
    ]
    return list(dict.fromkeys(alone)) or [f"parameters: {problems[0]}"]


def _problem(
    config_class: type[TrainConfig], sweep: Sweep, parameters: Mapping[str, Value]
) -> str | None:
    """What is wrong with the flags of a trial with these parameters."""
    try:
        config = parse_config(config_class, sweep.flags(parameters))
    except UserError as error:
        return str(error)
    for name, value in parameters.items():
        if isinstance(value, bool) and getattr(config, name.replace("-", "_"), value) is not value:
            return f"false leaves out a flag that is on by default; search no_{name} instead"
    return None


if __name__ == "__main__":
    run_command(main, SweepConfig)
