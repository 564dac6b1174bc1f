"""Where this repository is, and what it brings along."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "data"
