"""The trials of a sweep as an Optuna study in an SQLite file: drawn, remembered and plotted.

Imported only where a sweep is run, as Optuna is an extra.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import (
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
    plot_slice,
)

from common.errors import UserError
from common.sweep.domain import Choices, Domain
from common.sweep.sweep_file import Sweep
from common.training.seeding import stream

_SEARCH = "search"


class SweepStudy:
    """What has been tried in a sweep. A trial that was begun and has no outcome is still running:
    the process that ran it was stopped, and it is given out again.
    """

    def __init__(self, storage: Path, name: str, sweep: Sweep, seed: int) -> None:
        """Raises `UserError` if the study of that name is there and searches something else."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage.parent.mkdir(parents=True, exist_ok=True)
        self._sweep = sweep
        self._seed = seed
        self._storage = f"sqlite:///{storage.resolve()}"
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction="maximize" if sweep.maximize else "minimize",
            load_if_exists=True,
        )
        self._space = {name: _distribution(domain) for name, domain in sweep.parameters.items()}
        fields = {**dataclasses.asdict(sweep), "seed": seed}
        kept = {key: fields[key] for key in fields if key not in ("name", "run_cap", "ignored")}
        search = json.loads(json.dumps(kept))
        before = self._study.user_attrs.get(_SEARCH, search)
        if changed := [key for key, value in search.items() if before[key] != value]:
            raise UserError(
                f"sweep {name}: was begun with another {' and '.join(changed)}; give --name for a "
                "sweep of its own"
            )
        self._study.set_user_attr(_SEARCH, search)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def finished(self) -> int:
        """Trials that came to an end, good or bad."""
        return sum(trial.state.is_finished() for trial in self.trials)

    @property
    def completed(self) -> int:
        """Trials with a value."""
        return sum(trial.state == TrialState.COMPLETE for trial in self.trials)

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Those that came to an end, the best first and those that failed last."""
        best = sorted(
            (trial for trial in self.trials if trial.state == TrialState.COMPLETE),
            key=_value,
            reverse=self._sweep.maximize,
        )
        return best + [trial for trial in self.trials if trial.state == TrialState.FAIL]

    def next_trial(self) -> FrozenTrial:
        """One that was stopped half way, else a new one; of a grid, one must be left."""
        for trial in self.trials:
            if trial.state != TrialState.RUNNING:
                continue
            if set(trial.params) == set(self._space):
                return trial
            self.fail(trial.number, "stopped before it began")
        if self._sweep.method != "grid":
            self._study.sampler = self._sampler(len(self.trials))
            self._study.ask(self._space)
            return self.trials[-1]
        tried = [trial.params for trial in self.trials]
        combination = next(each for each in self._sweep.combinations() if each not in tried)
        self._study.add_trial(
            create_trial(state=TrialState.RUNNING, params=combination, distributions=self._space)
        )
        return self.trials[-1]

    def complete(self, number: int, value: float) -> None:
        self._study.tell(number, value)

    def fail(self, number: int, reason: str) -> None:
        self._study.set_user_attr(_reason_of(number), reason)
        self._study.tell(number, state=TrialState.FAIL)

    def reason(self, number: int) -> str:
        """Why a trial failed."""
        return self._study.user_attrs[_reason_of(number)]

    def delete(self) -> None:
        optuna.delete_study(study_name=self._study.study_name, storage=self._storage)

    def write_plots(self, folder: Path) -> list[Path]:
        """Pages that need no network; none as long as there is nothing to compare."""
        values = {_value(trial) for trial in self.trials if trial.state == TrialState.COMPLETE}
        if len(values) < 2:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        varied, metric = self._sweep.varied, self._sweep.metric
        figures = {
            "optimization_history": plot_optimization_history(self._study, target_name=metric),
            "param_importances": plot_param_importances(
                self._study, params=varied, target_name=metric
            ),
            "slice": plot_slice(self._study, params=varied, target_name=metric),
            "parallel_coordinate": plot_parallel_coordinate(
                self._study, params=varied, target_name=metric
            ),
        }
        for name, figure in figures.items():
            figure.write_html(folder / f"{name}.html", include_plotlyjs="directory")
        return [folder / f"{name}.html" for name in figures]

    def _sampler(self, number: int) -> BaseSampler:
        """One per trial, so that a sweep that was stopped goes on as if it had not been."""
        seed = int(stream(self._seed, "sweep", number).integers(2**32))
        return RandomSampler(seed) if self._sweep.method == "random" else TPESampler(seed=seed)


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choices):
        return CategoricalDistribution(domain.values)
    low, high, step = domain.low, domain.high, domain.step
    if isinstance(step, int) and isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, step=step)
    return FloatDistribution(low, high, log=domain.logarithmic, step=step)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _reason_of(number: int) -> str:
    return f"why trial {number} failed"
