"""One saved model per architecture for the whole session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_models import ARCHITECTURES, save_model


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of saved models by architecture; tests must not write into them."""
    directories: dict[str, Path] = {}

    def directory_of(architecture: str) -> Path:
        if architecture not in directories:
            path = tmp_path_factory.mktemp(architecture)
            directories[architecture] = save_model(architecture, path)
        return directories[architecture]

    return directory_of


# One architecture is enough to see at once that something is broken.
ONE_FAST = [
    pytest.param(name, marks=() if name == "qwen2" else pytest.mark.slow)
    for name in sorted(ARCHITECTURES)
]


@pytest.fixture(params=ONE_FAST)
def model_directory(request: pytest.FixtureRequest, saved_model: Callable[[str], Path]) -> Path:
    return saved_model(request.param)
