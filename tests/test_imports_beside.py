"""What a file imports is found by reading it, as far as it lies beside it."""

import pytest

from common.imports_beside import imported_files
from tests.helpers import REPOSITORY


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("import a", ["a.py"]),
        ("import a as other, json, torch, nowhere", ["a.py"]),
        ("from a import f, g", ["a.py"]),
        ("def f():\n    if True:\n        import a", ["a.py"]),
        ("try:\n    import a\nexcept ImportError:\n    pass", ["a.py"]),
        ("import b", ["a.py", "b.py"]),
        ("import circle", ["circle.py"]),
        ("import pack", ["pack/__init__.py"]),
        ("import pack.one", ["pack/__init__.py", "pack/one.py", "pack/two.py"]),
        ("from pack import one", ["pack/__init__.py", "pack/one.py", "pack/two.py"]),
        ("from pack import *", ["pack/__init__.py"]),
        ("from pack.one import f", ["pack/__init__.py", "pack/one.py", "pack/two.py"]),
        ("import plain.three", ["a.py", "plain/three.py"]),
        ("import folder", []),
        ("import common.errors", []),
    ],
)
def test_what_lies_beside(tmp_path, text, expected):
    files = {
        "mine.py": text,
        "a.py": "",
        "b.py": "import a",
        "circle.py": "import mine",
        "pack/__init__.py": "",
        "pack/one.py": "from . import two",
        "pack/two.py": "from .one import f",
        "plain/three.py": "from a import f",
        "folder/data.txt": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = imported_files(tmp_path / "mine.py", tmp_path)
    assert found == [tmp_path / name for name in expected]


def test_ours_is_not_the_users():
    assert imported_files(REPOSITORY / "tests" / "helpers.py", REPOSITORY) == []
