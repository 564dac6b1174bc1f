"""What the experiments log: all that is documented and nothing else, and it can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from common.views.compare.__main__ import write_page
from common.views.compare.charts import FIRST
from common.views.compare.groups import group_by_seed
from common.views.compare.runs import read_runs
from common.views.figures.maker import FIGURES, FINAL
from tests.browser import errors, offline_browser, open_page
from tests.helpers import EXPERIMENTS, REPOSITORY, read_rows, train_here
from tests.test_metrics_page import documented
from tests.views.compared_runs import TRACES

# What a run only logs if something goes wrong.
IN_TROUBLE = {"health/{rule}"}
# What runs with a process beside them log, which tests of their own look at.
WITH_AN_ENGINE = {"perf/cached_prompt_fraction", "perf/weight_sync_mb", "perf/weight_sync_s"}
WITH_A_LAG = {"rollouts/policy_lag", "time/waited_for_learner_s", "time/waited_for_rollouts_s"}
IN_SEVERAL_PROCESSES = {"ddp/received_bytes"}
# A run of a second or two that logs all that there is but figures.
SMALL = (
    *("--rollouts-per-step", "2", "--group-size", "4", "--train-batch-size", "8"),
    *("--max-steps", "2", "--max-completion-tokens", "40", "--run-name", "run"),
    *("--eval-samples", "8", "--eval-interval", "0", "--eval-group-size", "2"),
    *("--log-completions-interval", "1", "--histogram-interval", "1"),
    *("--checkpoint-interval", "1", "--no-wandb", "--no-tensorboard"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run directory of a small run of each experiment, with a rubric, a second draw and a
    correction."""
    root = tmp_path_factory.mktemp("runs")
    for experiment in EXPERIMENTS:
        kind = "search" if experiment == "experiment_multiturn_qa" else "arithmetic"
        rubric = REPOSITORY / "data" / "rubrics" / f"{kind}.yaml"
        flags = (*SMALL, "--rubric-file", str(rubric), "--dynamic-sampling", "2")
        flags += ("--correction", "token_masked")
        output = train_here(*flags, experiment=experiment, log_dir=root)
        name = rubric.read_text(encoding="utf-8").partition("name: ")[2].partition("\n")[0]
        assert f"Loaded rubric: {name} (4 criteria)" in output
    return {experiment: root / experiment / "run" for experiment in EXPERIMENTS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with offline_browser() as driver:
        yield driver


def test_docs_metrics_has_a_line_for_all_that_is_logged_and_for_nothing_else(runs):
    rows = [row for run in runs.values() for row in read_rows(run / "metrics.jsonl")]
    logged = {name for row in rows for name in row}
    logged |= {*FIGURES, *(f"{FINAL}/{name}" for name in FIGURES)}
    patterns = documented()
    unknown = {name for name in logged if not any(p.fullmatch(name) for p in patterns.values())}
    assert not unknown, f"docs/metrics.md has no line for {sorted(unknown)}"
    missing = {name for name, p in patterns.items() if not any(map(p.fullmatch, logged))}
    elsewhere = WITH_AN_ENGINE | WITH_A_LAG | IN_SEVERAL_PROCESSES
    assert missing == IN_TROUBLE | elsewhere, (
        f"nothing logs what docs/metrics.md says: {sorted(missing)}"
    )


@pytest.mark.slow
def test_runs_of_all_experiments_are_laid_over_one_another(browser, runs, tmp_path):
    paths = list(runs.values())
    write_page(tmp_path / "page.html", group_by_seed(read_runs([str(p) for p in paths])[0]))
    open_page(browser, tmp_path / "page.html")
    drawn = dict(browser.execute_script(TRACES))
    assert list(drawn) == list(FIRST)
    rows = [read_rows(path / "metrics.jsonl") for path in paths]
    for metric in FIRST:
        expected = [[row[metric] for row in of_run if metric in row] for of_run in rows]
        curves = [values for values in expected if values]
        assert len(drawn[metric]) == len(curves)
        for trace, values in zip(drawn[metric], curves, strict=True):
            assert trace["y"] == pytest.approx(values, rel=1e-5)
    assert len(drawn["rollouts/returns_mean"]) == len(EXPERIMENTS)
    links = browser.find_elements(By.CSS_SELECTOR, "#results .links a")
    assert len(links) >= 2 * len(EXPERIMENTS)
    assert all(
        (tmp_path / unquote(str(link.get_dom_attribute("href")))).is_file() for link in links
    )
    assert errors(browser) == []
