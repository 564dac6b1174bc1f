"""Help and a mistake in a flag wait for nothing that only a run needs.

Seconds are in `benchmarks/start_up.md`; here it is what is imported.
"""

import json
import subprocess
import sys

from tests.helpers import EXPERIMENTS, REPOSITORY

# What takes long to import, beside torch, which the flags themselves need.
OF_RUNS = (
    *("transformers", "tokenizers", "huggingface_hub", "accelerate", "peft", "pydantic"),
    *("wandb", "tensorboard", "plotly", "optuna", "bm25s", "math_verify", "scipy", "sklearn"),
)
# Each is found in another place: no flag, no number, out of range, and the last two in a session.
MISTAKES = (
    *("--lrr 1", "--lr x", "--top-p 2", "--objective nothing"),
    *("--device nothing", "--data-path nowhere"),
)
START = """
import importlib.util, io, json, sys
from contextlib import redirect_stderr, redirect_stdout

imported = []
for experiment, flags in json.loads(sys.argv[1]):
    sys.path.insert(0, experiment)
    spec = importlib.util.spec_from_file_location(experiment, f"{experiment}/train.py")
    script = sys.modules[experiment] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sys.argv = ["train.py", *flags.split()]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            script.run_script(script.main, script.Config)
    except SystemExit as stop:
        imported.append([experiment, flags, stop.code, sorted({*sys.modules})])
print(json.dumps(imported))
"""


def test_help_and_a_mistake_in_a_flag_import_nothing_that_only_a_run_needs():
    """One process asks for all, as it imports torch for seconds: what one start imports, those
    after it have as well."""
    starts = [(experiment, "--help", 0) for experiment in EXPERIMENTS]
    starts += [("experiment_base", flags, 2) for flags in MISTAKES]
    ended = subprocess.run(
        [sys.executable, "-c", START, json.dumps([start[:2] for start in starts])],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    of_runs = [
        (experiment, flags, code, sorted({*OF_RUNS} & {*modules}))
        for experiment, flags, code, modules in json.loads(ended.stdout)
    ]
    assert of_runs == [(*start, []) for start in starts]
