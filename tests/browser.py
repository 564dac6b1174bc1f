"""A real Chromium that has no window and no network, for pages that must work from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

# Its sandbox needs rights that root in a container lacks, and WebGL here is drawn by software.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=1280,900"),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def offline_browser() -> Iterator[Chrome]:
    """A browser for the tests of a module: starting one takes a second.

    @pytest.fixture(scope="module")
    def browser() -> Iterator[Chrome]:
        with offline_browser() as driver:
            yield driver

    The tests skip where there is no Chromium or no chromedriver.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        with Chrome(options, Service(driver_program)) as driver:
            driver.set_network_conditions(offline=True, latency=0, throughput=0)
            driver.set_page_load_timeout(60)
            driver.set_script_timeout(30)
            yield driver


def open_page(driver: Chrome, page: Path) -> None:
    """Load a file from the disk; what the page before it had to say is forgotten."""
    driver.get_log("browser")
    driver.get(page.resolve().as_uri())


def errors(driver: Chrome) -> list[str]:
    """What went wrong since the page was opened, or since the last call: exceptions, console.error
    and files or addresses that could not be loaded.
    """
    return [log["message"] for log in driver.get_log("browser") if log["level"] == "SEVERE"]
