"""Dependencies point one way, and every third party has its homes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from tests.helpers import REPOSITORY

# Each imports itself and those before it.
ROOMS = (
    *("errors", "printable", "packages", "imports_beside", "own_code", "background"),
    *("plain_number", "yaml_file", "repository", "command", "freed_memory", "scratch"),
    *("algo", "tasks", "tools", "rewards", "models", "rollout", "replay_buffer"),
    *("flags", "run", "logger", "views", "training", "sweep"),
)
HOMES = {
    "wandb": ("common/logger/",),
    "wandb_workspaces": ("common/logger/",),
    "tensorboard": ("common/logger/",),
    # W&B takes figures of plotly's own class alone.
    "plotly": (
        *("common/views/figures/", "common/views/compare/", "common/logger/wandb_media.py"),
    ),
    "optuna": ("common/sweep/",),
    "peft": ("common/models/",),
    "bitsandbytes": ("common/models/",),
    "bm25s": ("common/tools/",),
    "vllm": ("common/rollout/engines/vllm_process.py",),
    "httpx": ("common/rollout/engines/",),
    "math_verify": ("common/rewards/math_worker.py",),
    "accelerate": ("common/training/", "experiment_accelerate/", "experiment_accelerate_ddp/"),
    # The flags of everything; beside them the commands that take an argument without a flag.
    "pydantic": ("common/flags/saved.py",),
    "tyro": (
        *("common/command.py", "common/flags/", "common/views/compare/__main__.py"),
        *("common/views/samples.py", "common/training/tiny_model.py", "common/training/ask.py"),
        "common/sweep/__main__.py",
    ),
}
# Where flags become devices.
DEVICES = "common/models/device.py"


@cache
def trees() -> dict[str, ast.Module]:
    """All modules of `common` and of the experiments, by their path in the repository."""
    files = (*REPOSITORY.glob("common/**/*.py"), *REPOSITORY.glob("experiment_*/**/*.py"))
    return {
        path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(files)
    }


def imports(path: str) -> Iterator[str]:
    """The modules that are imported in a file, and what is imported from them."""
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the whole name, from common.ROOM"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """The room of `common/room/module.py`, or of `common.room.module.name`."""
    return name.removesuffix(".py").replace("/", ".").split(".")[1]


def listed(wrong: list[str]) -> str:
    return "".join(f"\n{line}" for line in wrong)


def test_a_room_of_common_imports_itself_and_lower_ones_and_no_experiment():
    in_common = [path for path in trees() if path.startswith("common/")]
    assert {room_of(path) for path in in_common} - {"__init__"} == set(ROOMS)
    wrong = [
        f"{path} ({room_of(path)}) imports {name}"
        for path in in_common
        for name in imports(path)
        if name.startswith(("experiment_", "tests.", "benchmarks."))
        or (name.startswith("common.") and ROOMS.index(room_of(name)) > ROOMS.index(room_of(path)))
    ]
    assert not wrong, listed(wrong)


def test_every_third_party_is_imported_at_its_homes_alone():
    wrong = []
    for path in trees():
        for name in imports(path):
            # Also what another package hands on, as torch.utils.tensorboard does.
            third_party = "tensorboard" if "tensorboard" in name else name.split(".")[0]
            if not path.startswith(HOMES.get(third_party, "")):
                wrong.append(f"{path} imports {name}")
    assert not wrong, listed(wrong)


def test_no_device_is_written_into_the_code():
    """Devices come from a flag or a tensor."""
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in trees().items()
        if path != DEVICES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for argument in node.args
        if isinstance(argument, ast.Constant) and argument.value == "cuda"
    ]
    assert not wrong, listed(wrong)
