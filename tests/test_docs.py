"""The documents name what there is: experiments, rooms, directories."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch

from common.algo.variants import VARIANTS
from tests.helpers import REPOSITORY
from tests.test_layering import ROOMS
from tests.test_public_face import FILE
from tests.test_train_scripts import PARENTS

ROOT = "experiment_base"


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def missing_for(experiment: str, parents: dict[str, str]) -> list[str]:
    """All that a new experiment still needs."""
    directory, readme = REPOSITORY / experiment, read("README.md")
    table = [line for line in readme.splitlines() if line.startswith(f"| [{experiment}](")]
    layout = re.search(rf"^{experiment}/ +\w", read("CONTRIBUTING.md"), re.M)
    needed = {
        "train.py, its script": (directory / "train.py").is_file(),
        "README.md, with its idea and what it reached": (directory / "README.md").is_file(),
        "sweep.yaml, with flags worth searching": (directory / "sweep.yaml").is_file(),
        f"a row in README.md: | [{experiment}]({experiment}/README.md) | idea | `cd {experiment} "
        "&& ...` |": any(
            f"]({experiment}/README.md)" in line and f"cd {experiment} &&" in line for line in table
        ),
        f"a line in CONTRIBUTING.md's layout: {experiment}/  idea": layout is not None,
        "its parent in PARENTS of tests/test_train_scripts.py": (
            experiment == ROOT or (REPOSITORY / parents.get(experiment, "nowhere")).is_dir()
        ),
        f"its flags in {FILE.name}: python -m tests.test_public_face": (
            experiment in json.loads(FILE.read_text(encoding="utf-8"))["flags"]
        ),
    }
    return [what for what, is_there in needed.items() if not is_there]


def test_every_objective_has_a_row_in_its_page_and_is_named_in_the_help():
    rows = re.findall(r"^\| `(\w+)` \|", read("docs/objectives.md"), re.M)
    assert sorted(rows) == sorted(VARIANTS)
    (said,) = re.findall(
        r'"""What is maximised: (.*?)"""', read("common/flags/train_config.py"), re.S
    )
    assert [name for name in VARIANTS if not re.search(rf"\b{name}\b", said)] == []


def test_every_experiment_has_all_that_belongs_to_it():
    directories = {path.name for path in REPOSITORY.glob("experiment_*") if any(path.glob("*.py"))}
    named = {*PARENTS, *re.findall(r"^\| \[(experiment_\w+)\]", read("README.md"), re.M)}
    assert named <= directories, f"there is no {sorted(named - directories)}"
    missing = [
        f"{experiment} lacks {what}"
        for experiment in sorted(directories)
        for what in missing_for(experiment, PARENTS)
    ]
    assert not missing, "".join(f"\n{line}" for line in missing)


def test_what_a_new_experiment_lacks_is_named_all_at_once():
    lacking = missing_for("experiment_new", PARENTS)
    assert len(lacking) == 7
    assert {"README.md", "sweep.yaml", "train.py"} <= {what.split(",")[0] for what in lacking}


def test_the_layout_names_every_room_in_their_order_and_every_directory():
    layout = read("CONTRIBUTING.md").partition("## Layout\n\n```\n")[2].partition("```")[0]
    rooms = re.findall(r"^  (\w+)(?:/|\.py) ", layout, re.M)
    assert rooms == list(ROOMS)
    listed = set(re.findall(r"^(\w+)/ ", layout, re.M))
    ignored = [line.strip("/") for line in read(".gitignore").splitlines() if line]
    there = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}
    hidden = {name for name in there if any(fnmatch(name, pattern) for pattern in [".*", *ignored])}
    assert listed == there - hidden
