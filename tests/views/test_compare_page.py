"""The page of the comparison in a real browser, from the disk, with the network off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from common.views.compare.__main__ import write_page
from common.views.compare.charts import FIRST
from common.views.compare.groups import group_by_seed
from common.views.compare.page import as_script_data
from common.views.compare.runs import read_runs
from tests.browser import errors, offline_browser, open_page
from tests.views.compared_runs import (
    BATCHES,
    RETURNS,
    SECONDS,
    TOKENS,
    TRACES,
    batch_rows,
    whole_run,
    write_run,
)

pytestmark = pytest.mark.slow

OTHER_RETURNS = (0.5, 1.0, 0.9)
# The other seed is twice as slow, and writes half as much.
OTHER_BATCHES = tuple((count, length / 2, 2 * seconds) for count, length, seconds in BATCHES)
# After each optimizer step of the first seed.
STEP_TOKENS = (21, 42, 66, 90, 102, 114)
STEP_SECONDS = (1, 2, 3.75, 5.5, 6.25, 7)
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=window.hacked=2>%{x}"
HOSTILE_NAME = '<b onclick="window.hacked=3">%{y}&lt;'
HOSTILE_METRIC = "eval/<i>%{x}</i>"

SETTLED = """
const done = arguments[0];
requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50)));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with offline_browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two seeds, and a run of another experiment that nobody could trust."""
    root = tmp_path_factory.mktemp("runs")
    first = write_run(root, "a-seed1", whole_run(), seed=1)
    write_run(
        root, "a-seed2", whole_run(OTHER_RETURNS, accuracy=0.85, batches=OTHER_BATCHES), seed=2
    )
    odd = {"rollouts/batch_step": 1, HOSTILE_METRIC: 0.5}
    rows = [*batch_rows(1, 0.1), odd, *batch_rows(2, 0.2)[:1]]
    last = write_run(root, HOSTILE_NAME, rows, "experiment_b", tag=HOSTILE, **{HOSTILE: HOSTILE})
    (first / "samples.jsonl").write_text("{}\n")
    for name in ("3d/loss_landscape.html", "final/3d/a%20b?#.html"):
        figure = last / "figures" / name
        figure.parent.mkdir(parents=True)
        figure.write_text("a figure")
    write_page(root / "compare.html", group_by_seed(read_runs([str(root)])[0]))
    return root


@pytest.fixture
def page(browser, root) -> Iterator[Chrome]:
    open_page(browser, root / "compare.html")
    yield browser
    assert errors(browser) == []


def click(page: Chrome, text: str) -> None:
    page.find_element(By.XPATH, f"//fieldset//label[normalize-space()='{text}']").click()
    page.execute_async_script(SETTLED)


def smooth(page: Chrome, weight: float) -> None:
    slider = page.find_element(By.ID, "smoothing")
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    page.execute_script(script, slider, weight)
    page.execute_async_script(SETTLED)


def traces(page: Chrome, metric: str, kind: str | None = None) -> list[dict[str, Any]]:
    drawn = dict(page.execute_script(TRACES))[metric]
    return [trace for trace in drawn if kind is None or trace["meta"] == kind]


def test_the_page_draws_the_first_metrics_that_there_are(page):
    drawn = dict(page.execute_script(TRACES))
    logged = {"eval/accuracy", "rollouts/returns_mean", "training_step/loss"}
    logged |= {"rollouts/completion_tokens_mean", "eval/returns_mean"}
    assert list(drawn) == [metric for metric in FIRST if metric in logged]
    kinds = [trace["meta"] for trace in drawn["rollouts/returns_mean"]]
    assert kinds == ["band", "mean", "mean"]
    assert [trace["meta"] for trace in drawn["eval/accuracy"]] == ["band", "mean"]
    lines = page.find_elements(By.CSS_SELECTOR, "[data-metric='rollouts/returns_mean'] .js-line")
    assert len(lines) == 3
    assert all(line.size["width"] > 0 for line in lines[:2])


def test_a_line_is_the_mean_of_the_seeds_and_its_band_their_deviation(page):
    seeds = np.array([RETURNS, OTHER_RETURNS])
    mean, deviation = seeds.mean(axis=0), seeds.std(axis=0, ddof=1)
    (line, alone) = traces(page, "rollouts/returns_mean", "mean")
    assert line["x"] == [1, 2, 3]
    assert line["y"] == pytest.approx(mean, rel=1e-5)
    assert (alone["x"], alone["y"]) == ([1], [0.1])
    (band,) = traces(page, "rollouts/returns_mean", "band")
    assert band["x"] == [1, 2, 3, 3, 2, 1]
    assert band["y"] == pytest.approx([*(mean + deviation), *(mean - deviation)[::-1]], rel=1e-5)


def test_the_x_axis_can_be_chosen(page):
    for axis, returns, losses in (
        ("optimizer step", [2, 4, 6], [1, 2, 3, 4, 5, 6]),
        ("generated tokens", 0.75 * np.array(TOKENS), 0.75 * np.array(STEP_TOKENS)),
        ("wall time", 1.5 * np.array(SECONDS), 1.5 * np.array(STEP_SECONDS)),
        ("batch step", [1, 2, 3], [0.5, 1, 1.5, 2, 2.5, 3]),
    ):
        click(page, axis)
        line = traces(page, "rollouts/returns_mean", "mean")[0]
        assert line["x"] == pytest.approx(list(returns))
        assert line["y"] == pytest.approx(np.mean([RETURNS, OTHER_RETURNS], axis=0), rel=1e-5)
        loss, unfinished = traces(page, "training_step/loss", "mean")
        assert loss["x"] == pytest.approx(list(losses))
        # A step of a batch that is not finished is on the axis that it has.
        assert len(unfinished["x"]) == (3 if axis == "optimizer step" else 2)
        title = page.find_element(By.CSS_SELECTOR, ".chart .xtitle").text
        assert title == ("wall time (s)" if axis == "wall time" else axis)


def test_single_runs_can_be_shown(page):
    click(page, "single runs")
    click(page, "generated tokens")
    drawn = traces(page, "rollouts/returns_mean")
    assert [trace["meta"] for trace in drawn] == ["run"] * 3
    assert [trace["x"] for trace in drawn] == [list(TOKENS), [21, 45, 57], [42]]
    assert [trace["y"] for trace in drawn] == [list(RETURNS), list(OTHER_RETURNS), [0.1]]
    first, second, other = (trace["color"] for trace in drawn)
    assert first == second != other


def unbiased_average(values: np.ndarray, weight: float) -> list[float]:
    """The exponential weights of all values so far, made to add up to 1."""
    result = []
    for end in range(1, len(values) + 1):
        weights = weight ** np.arange(end)[::-1]
        result.append(float(weights @ values[:end] / weights.sum()))
    return result


def test_smoothing_is_an_exponential_average_of_each_seed(page):
    for weight in (0.6, 0.99):
        smooth(page, weight)
        seeds = [unbiased_average(np.array(seed), weight) for seed in (RETURNS, OTHER_RETURNS)]
        line = traces(page, "rollouts/returns_mean", "mean")[0]
        assert line["y"] == pytest.approx(np.mean(seeds, axis=0), rel=1e-5)
        deviation = np.std(seeds, axis=0, ddof=1)
        (band,) = traces(page, "rollouts/returns_mean", "band")
        assert band["y"][:3] == pytest.approx(np.mean(seeds, axis=0) + deviation, rel=1e-5)
        assert page.find_element(By.ID, "smoothing-value").text == f"{weight:.2f}"
    smooth(page, 0)
    line = traces(page, "rollouts/returns_mean", "mean")[0]
    assert line["y"] == pytest.approx(np.mean([RETURNS, OTHER_RETURNS], axis=0), rel=1e-5)


def test_groups_can_be_hidden(page):
    page.find_element(By.CSS_SELECTOR, "#legend label").click()
    page.execute_async_script(SETTLED)
    (alone,) = traces(page, "rollouts/returns_mean")
    assert alone["y"] == [0.1]


def test_metrics_can_be_found_added_and_removed(page):
    page.find_element(By.CSS_SELECTOR, "#metrics summary").click()
    page.find_element(By.ID, "metric-search").send_keys("STEP_S")
    labels = page.find_elements(By.CSS_SELECTOR, "#metric-list label")
    (shown,) = [label for label in labels if label.is_displayed()]
    assert shown.text == "time/step_s"
    shown.click()
    line = traces(page, "time/step_s", "mean")[0]
    seconds = np.array([seconds for _, _, seconds in BATCHES])
    assert line["y"] == pytest.approx(1.5 * seconds)
    page.execute_script(
        "document.querySelector('figure[data-metric=\"time/step_s\"] button').click()"
    )
    assert "time/step_s" not in dict(page.execute_script(TRACES))
    assert page.find_element(By.ID, "metric-count").text.startswith("5 of")


def test_the_tables_have_the_results_and_the_differences(page):
    rows = page.find_elements(By.CSS_SELECTOR, "#results tbody tr")
    cells = [[c.text for c in row.find_elements(By.TAG_NAME, "td")] for row in rows]
    assert cells[0] == [
        *("experiment_a/a-seed1\nsamples.jsonlmetrics.jsonl", "1", "3"),
        *("0.750", "0.750", "0.850", "0.500", "0.750", "0:07", "114"),
    ]
    assert cells[2][:5] == ["mean of 2 seeds", "", "", "0.800\n± 0.071", "0.800\n± 0.071"]
    assert cells[3][0].startswith(f"experiment_b/{HOSTILE_NAME}\n")
    assert cells[3][1:4] == ["1", "1/3", "-"]
    rows = page.find_elements(By.CSS_SELECTOR, "#differences tbody tr")
    shown = [[cell.text for cell in row.find_elements(By.XPATH, "*")] for row in rows]
    assert shown == [
        ["experiment", "experiment_a", "experiment_b"],
        ["tag", "-", HOSTILE],
        [HOSTILE, "-", HOSTILE],
    ]


def test_links_lead_to_the_files_of_the_runs(page, root):
    addresses = [
        link.get_dom_attribute("href")
        for link in page.find_elements(By.CSS_SELECTOR, "#results .links a")
    ]
    targets = [unquote(urlparse(address).path) for address in addresses]
    assert not any(urlparse(address).scheme or address.startswith("/") for address in addresses)
    b = f"experiment_b/{HOSTILE_NAME}"
    assert targets == [
        *("experiment_a/a-seed1/samples.jsonl", "experiment_a/a-seed1/metrics.jsonl"),
        *("experiment_a/a-seed2/metrics.jsonl", f"{b}/metrics.jsonl"),
        *(f"{b}/figures/3d/loss_landscape.html", f"{b}/figures/final/3d/a%20b?#.html"),
    ]
    assert all((root / target).is_file() for target in targets)
    page.get(
        page.find_elements(By.CSS_SELECTOR, "#results .links details a")[1].get_property("href")
    )
    assert page.find_element(By.TAG_NAME, "body").text == "a figure"


def test_nothing_from_a_run_is_run(page, root):
    click(page, "single runs")
    page.find_element(By.CSS_SELECTOR, "#metrics summary").click()
    page.find_element(By.CSS_SELECTOR, f"#metric-list input[value='{HOSTILE_METRIC}']").click()
    hover = "Plotly.Fx.hover(document.querySelector('.chart'), {xval: 1})"
    page.execute_script(hover)
    page.execute_async_script(SETTLED)
    assert page.execute_script("return window.hacked ?? null") is None
    assert page.find_elements(By.CSS_SELECTOR, "main img, main b, main i") == []
    assert page.execute_script("return document.scripts.length") == 3
    # Nor would the browser run it, if it were let in.
    page.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", HOSTILE)
    page.execute_async_script(SETTLED)
    assert page.execute_script("return window.hacked ?? null") is None
    assert [error for error in errors(page) if "Content Security Policy" not in error] == []


def test_the_name_of_a_run_is_shown_as_it_is_beside_its_values(page):
    page.execute_script(
        "Plotly.Fx.hover([...document.querySelectorAll('figure')]"
        ".find((f) => f.dataset.metric === 'rollouts/returns_mean').querySelector('.chart'),"
        "{xval: 1})"
    )
    page.execute_async_script(SETTLED)
    texts = [t.text for t in page.find_elements(By.CSS_SELECTOR, ".hoverlayer text")]
    assert f"experiment_b/{HOSTILE_NAME} : 0.1" in texts
    assert "experiment_a/a : 0.375 ± 0.18 (2)" in texts


def test_data_cannot_close_its_element():
    text = as_script_data({"a": HOSTILE, "b": "<!--<script>\u2028&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": HOSTILE, "b": "<!--<script>\u2028&"}
