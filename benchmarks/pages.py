"""Pages with tables that are made anew, below comments that name them."""

from __future__ import annotations

import re
from pathlib import Path


def put_into(page: Path, name: str, table: str) -> None:
    """In place of the table that stands below the comment with that name."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n\n).*?(?=\n\n|\n?\Z)", re.DOTALL)
    text, count = pattern.subn(lambda found: found[1] + table, text)
    assert count == 1, f"{page}: there is no <!-- {name} -->"
    page.write_text(text, encoding="utf-8")
