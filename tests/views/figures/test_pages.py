"""Pages in a real browser without a network: the made-up figures, and those of a run."""

import io
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome

from common.views.figures.demo import DemoConfig
from common.views.figures.demo import main as make_demo
from common.views.figures.history import History
from common.views.figures.maker import FIGURES, page_of, write_page
from tests.browser import errors, offline_browser, open_page

pytestmark = pytest.mark.slow

_SHOWS = "document.querySelectorAll('.js-plotly-plot')[0]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with offline_browser() as driver:
        driver.set_window_size(640, 520)
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    make_demo(DemoConfig(folder))
    return folder


def coloured_pixels(browser: Chrome) -> int:
    """Pixels of the canvas that are no shade of grey; what is drawn over it is hidden."""
    browser.execute_script(
        "document.querySelectorAll('.main-svg').forEach(e => e.style.visibility = 'hidden')"
    )
    shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    channels = np.asarray(shot).astype(int)
    return int((np.ptp(channels, axis=-1) > 60).sum())


def wait_for_colour(browser: Chrome) -> int:
    deadline = monotonic() + 20
    while not (count := coloured_pixels(browser)) and monotonic() < deadline:
        sleep(0.1)
    return count


@pytest.mark.parametrize("name", [name for name in FIGURES if name.startswith("3d/")])
def test_a_page_draws_its_points_on_a_canvas(name: str, browser: Chrome, pages: Path):
    open_page(browser, page_of(pages, name))
    assert browser.execute_script("return document.querySelectorAll('canvas').length") >= 1
    assert wait_for_colour(browser) > 100
    browser.execute_script(f"return Plotly.restyle({_SHOWS}, 'visible', false)")
    deadline = monotonic() + 20
    while coloured_pixels(browser) and monotonic() < deadline:
        sleep(0.1)
    assert coloured_pixels(browser) == 0, "the colours were not those of the points"
    assert errors(browser) == []


def test_the_heat_map_draws_a_cell_per_criterion_and_batch(browser: Chrome, pages: Path):
    open_page(browser, page_of(pages, "criteria/heatmap"))
    assert browser.execute_script("return document.querySelectorAll('.heatmaplayer image').length")
    assert browser.execute_script(f"return {_SHOWS}.data[0].z.length") == 3
    assert errors(browser) == []


def test_a_page_with_nothing_to_draw_says_so(browser: Chrome, tmp_path: Path):
    page = page_of(tmp_path, "3d/policy_evolution")
    write_page(FIGURES["3d/policy_evolution"](History()), page)
    open_page(browser, page)
    assert "neither a KL nor a reward" in browser.find_element("css selector", "body").text
    assert errors(browser) == []


def test_a_constant_learning_rate_leaves_a_curve(browser: Chrome, tmp_path: Path):
    history = History()
    for step in range(1, 30):
        row = {"loss": 1 / step, "learning_rate": 1e-3}
        named = {f"training_step/{key}": value for key, value in row.items()}
        history.add({"training_step/global_step": step, **named})
    page = page_of(tmp_path / "final", "3d/loss_landscape")
    write_page(FIGURES["3d/loss_landscape"](history), page)
    open_page(browser, page)
    assert "0.001 in all these steps" in browser.find_element("css selector", "body").text
    assert wait_for_colour(browser) > 100
    assert errors(browser) == []
