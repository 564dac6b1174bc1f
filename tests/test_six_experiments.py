"""What the six experiments log: all that is documented, and all that can be compared."""

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
from common.views.figures.maker import FIGURES, FINAL, page_of
from tests.browser import errors, offline_browser, open_page
from tests.helpers import REPOSITORY, read_rows, run_training
from tests.test_metrics_page import documented
from tests.views.compared_runs import TRACES

pytestmark = pytest.mark.slow

# What a run only logs if something goes wrong.
IN_TROUBLE = {"health/{rule}"}
EXPERIMENTS = sorted(path.parent.name for path in REPOSITORY.glob("experiment_*/train.py"))
# A run of seconds that logs all that there is.
SMALL = (
    *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
    *("--max-steps", "3", "--eval-samples", "16", "--eval-interval", "0"),
    *("--eval-group-size", "2", "--log-completions-interval", "1", "--histogram-interval", "1"),
    *(
        "--figures-interval",
        "3",
        "--checkpoint-interval",
        "1",
        "--run-name",
        "run",
        "--no-wandb",
        "--no-tensorboard",
    ),
)


@pytest.fixture(scope="module")
def six_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run directory of a small run of each experiment, with a rubric."""
    root = tmp_path_factory.mktemp("six_runs")
    for experiment in EXPERIMENTS:
        kind = "search" if experiment == "experiment_multiturn_qa" else "arithmetic"
        rubric = REPOSITORY / "data" / "rubrics" / f"{kind}.yaml"
        flags = (*SMALL, "--rubric-file", str(rubric))
        result = run_training(*flags, experiment=experiment, log_dir=root)
        assert result.returncode == 0, result.stderr
        name = rubric.read_text(encoding="utf-8").partition("name: ")[2].partition("\n")[0]
        assert f"Loaded rubric: {name} (4 criteria)" in result.stdout
    return {experiment: root / experiment / "run" for experiment in EXPERIMENTS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with offline_browser() as driver:
        yield driver


def test_the_page_lists_what_the_six_experiments_log_and_nothing_else(six_runs):
    rows = [row for run in six_runs.values() for row in read_rows(run / "metrics.jsonl")]
    logged = {name for row in rows for name in row}
    for run in six_runs.values():
        logged |= {name for name in FIGURES if page_of(run / "figures", name).exists()}
        final = run / "figures" / FINAL
        logged |= {f"{FINAL}/{name}" for name in FIGURES if page_of(final, name).exists()}
    patterns = documented()
    unknown = [n for n in logged if not any(p.fullmatch(n) for p in patterns.values())]
    assert sorted(unknown) == []
    missing = {n for n, p in patterns.items() if not any(map(p.fullmatch, logged))}
    assert missing == IN_TROUBLE


def test_runs_of_the_six_experiments_are_laid_over_one_another(browser, six_runs, tmp_path):
    paths = list(six_runs.values())
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
    assert len(drawn["rollouts/returns_mean"]) == 6
    # Without a reference there is no KL.
    assert len(drawn["rollouts/kl_mean"]) == 5
    links = browser.find_elements(By.CSS_SELECTOR, "#results .links a")
    assert len(links) >= 12
    assert all(
        (tmp_path / unquote(str(link.get_dom_attribute("href")))).is_file() for link in links
    )
    assert errors(browser) == []
