"""Functions of the user's: found by module and by file, and every mistake one line."""

import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.own_code import (
    anchored,
    code_of_the_user,
    function_name,
    import_function,
    names_own_code,
    sources,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_function_is_found_by_module_by_relative_and_by_absolute_file(here):
    write(here / "mine.py", "def one():\n    return 1\n")
    write(here / "below" / "mine.py", "def one():\n    return 2\n")
    assert import_function("--f", "mine:one")() == 1
    assert import_function("--f", "below/mine.py:one")() == 2
    assert import_function("--f", f"{here}/below/../mine.py:one")() == 1


def test_a_file_is_read_once_whatever_its_path(here):
    write(here / "mine.py", "calls = []\ndef f():\n    return calls\ndef g():\n    return calls\n")
    first, second = import_function("--f", "mine.py:f"), import_function("--f", f"{here}/mine.py:g")
    assert first() is second()


def test_a_file_may_have_the_name_of_a_module_and_import_what_lies_beside_it(here):
    write(here / "below" / "json.py", "from beside_it import value\ndef f():\n    return value\n")
    write(here / "below" / "beside_it.py", "value = 7\n")
    assert import_function("--f", "below/json.py:f")() == 7
    assert "dumps" in vars(sys.modules["json"])


def test_a_class_is_a_function(here):
    write(
        here / "mine.py",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Game:\n    secret: int = 3\n",
    )
    assert import_function("--environment", "mine.py:Game")().secret == 3


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("mine", "--f mine: not of the form module:function or file.py:function"),
        (":f", "--f :f: not of the form"),
        ("mine:", "--f mine:: not of the form"),
        ("lost.py:f", "--f lost.py:f: no such file; give its path from {here}"),
        (".py:f", "--f .py:f: no such file"),
        ("lost:f", "--f lost:f: no module 'lost'; run from its directory or install it"),
        ("mine.py:g", "--f mine.py:g: mine.py has no function 'g'"),
        ("mine.py:value", "--f mine.py:value: mine.py has no function 'value'"),
        ("raises.py:f", "--f raises.py:f: raised KeyError: 'x' ({here}/raises.py, line 2)"),
        ("raises:f", "--f raises:f: raised KeyError: 'x' ({here}/raises.py, line 2)"),
        ("broken.py:f", "--f broken.py:f: raised SyntaxError: "),
        ("imports.py:f", "--f imports.py:f: no module 'nowhere_at_all'; "),
    ],
)
def test_a_mistake_is_one_line(here, path, complaint):
    write(here / "mine.py", "value = 3\n")
    write(here / "raises.py", "{}\n{}['x']\n")
    write(here / "broken.py", "def f(:\n")
    write(here / "imports.py", "import nowhere_at_all\n")
    with pytest.raises(UserError) as caught:
        import_function("--f", path)
    assert str(caught.value).startswith(complaint.replace("{here}", str(here)))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_writing_is_placed(here):
    write(here / "broken.py", "value = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"broken\.py, line 2\); mend it"):
        import_function("--f", "broken.py:f")


def test_what_a_library_raises_is_placed_where_the_user_called_it(here):
    write(here / "reads.py", "import json\n\njson.loads('')\n")
    with pytest.raises(UserError, match=r"raised JSONDecodeError: .*reads\.py, line 3\); mend it"):
        import_function("--f", "reads.py:f")


def test_a_file_that_failed_is_read_again(here):
    write(here / "mine.py", "raise ValueError\n")
    with pytest.raises(UserError, match="raised ValueError"):
        import_function("--f", "mine.py:f")
    write(here / "mine.py", "def f():\n    return 'mended'\n")
    assert import_function("--f", "mine.py:f")() == "mended"


def test_what_is_raised_later_names_the_flag():
    complaint = (
        r"^--f a:b: raised ValueError: two lines \(.*test_own_code\.py, line \d+\); mend it$"
    )
    with pytest.raises(UserError, match=complaint), code_of_the_user("--f", "a:b"):
        raise ValueError("two\nlines")


@pytest.mark.parametrize("path", ["mine:f", "mine.py:f", "below/../mine.py:f"])
def test_the_sources_of_a_function_are_its_file_and_what_lies_beside_it(here, path):
    write(here / "mine.py", "import json\nimport helper\ndef f():\n    return 1\n")
    write(here / "helper.py", "import helper\n")
    write(here / "below" / "other.py", "")
    expected = {"mine.py": here / "mine.py", "helper.py": here / "helper.py"}
    assert sources("--f", path) == expected
    assert list(sources("--f", path)) == list(expected)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mine_pack.inner.mod:f", ["inner/mod", "beside", "__init__", "inner/__init__"]),
        ("mine_pack:f", ["__init__"]),
        ("mine_pack/beside.py:f", ["beside"]),
    ],
)
def test_a_package_lies_beside_its_own_modules(here, path, expected):
    write(here / "mine_pack" / "__init__.py", "def f(): ...\n")
    write(here / "mine_pack" / "inner" / "__init__.py", "")
    write(here / "mine_pack" / "inner" / "mod.py", "from .. import beside\nf = beside.f\n")
    write(here / "mine_pack" / "beside.py", "def f(): ...\n")
    top = "" if path.startswith("mine_pack/") else "mine_pack/"
    assert set(sources("--f", path)) >= {f"{top}{name}.py" for name in expected[:2]}


def test_what_has_no_file_has_no_sources():
    assert sources("--f", "builtins:len") == {}


def test_what_is_installed_is_not_looked_into():
    assert list(sources("--f", "textwrap:dedent")) == ["textwrap.py"]
    assert list(sources("--f", "tyro:cli")) == ["tyro/__init__.py"]
    assert [Path(name).suffix for name in sources("--f", "_json:make_encoder")] in ([], [".so"])


def test_a_module_that_is_broken_and_imported_late_is_named(here):
    write(here / "mine.py", "def f():\n    import broken\n")
    write(here / "broken.py", "def g(:\n")
    with pytest.raises(UserError, match=r"^--f mine:f: raised SyntaxError: .*broken\.py, line 1"):
        sources("--f", "mine:f")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mine.py:f", "/there/mine.py:f"),
        ("a/mine.py:f", "/there/a/mine.py:f"),
        ("/else/mine.py:f", "/else/mine.py:f"),
        ("mine:f", "mine:f"),
        ("bm25", "bm25"),
        ("odd:name/mine.py:f", "/there/odd:name/mine.py:f"),
    ],
)
def test_files_alone_are_anchored(path, expected, tmp_path):
    there = tmp_path / "there"
    assert anchored(path, there) == expected.replace("/there", str(there))


def test_the_parts_of_a_name():
    assert function_name("a/b:c.py:f") == "f"
    assert [names_own_code(value) for value in ("bm25", "a:f", "a.py:f")] == [False, True, True]
