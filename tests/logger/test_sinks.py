"""The logger and the sinks that are always there, read back from what they wrote."""

import errno
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.util.tensor_util import make_ndarray

from common.logger.logger import SAMPLE_COLUMNS, Logger
from common.logger.media import Bars, Histogram, Table, as_json, from_json
from common.logger.sinks import ConsoleSink, JsonlSink
from common.logger.tensorboard_sink import TensorBoardSink
from common.rewards.outcome import Failure
from common.rewards.transcript import Transcript
from common.rollout.trajectory import Group, Rollout, Trajectory
from common.tasks.task import Task
from tests.helpers import random_experiences, read_rows


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strict_rows(path: Path) -> list[dict]:
    """As any reader has them, for whom NaN is not JSON."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=40)


@pytest.fixture
def logger(tmp_path, console) -> Logger:
    sinks = [
        JsonlSink(tmp_path / "metrics.jsonl"),
        TensorBoardSink(tmp_path),
        ConsoleSink(3, console),
    ]
    return Logger(sinks, console, tmp_path / "samples.jsonl")


def test_an_evaluation_is_a_line_of_what_there_is(console):
    sink = ConsoleSink(3, console)
    evaluation = {"rollouts/batch_step": 0, "eval/accuracy": 0.25, "eval/returns_mean": 0.5}
    sink.log(evaluation)
    sink.log({**evaluation, "eval/format_rate": 1.0})
    sink.close(0)
    assert " ".join(console.file.getvalue().split()) == (
        "held-out accuracy 25.0%, return 0.500 "
        "held-out accuracy 25.0%, return 0.500, answer tags in 100.0%"
    )


def test_what_a_reward_failed_on_is_in_the_samples_and_said_once(logger, console, tmp_path):
    scores = {"judge": None, "short": 1.0}
    failure = Failure("--reward a.py:judge", "raised KeyError: 'x'")
    trajectory = Trajectory((), failure.kind)
    failed = Rollout(trajectory, Transcript("y"), scores, 1.0, False, failure)
    fine = Rollout(Trajectory((), "stop"), Transcript("z"), {**scores, "judge": 0.5}, 1.5, True)
    only_logged = Failure("--reward a.py:short", "gave nan")
    fine = replace(fine, failure=only_logged)
    group = Group(Task(0, "?", "!"), [fine], [0.0], errored=[failed, failed])
    with logger:
        logger.log_samples(1, [group], "train")
        logger.log_errored(1, [group])
    rows = strict_rows(tmp_path / "samples.jsonl")
    assert [(row["split"], row["correct"], row["judge"]) for row in rows] == [
        ("train", True, 0.5),
        *[("errored", False, None)] * 2,
    ]
    assert [row.get("failure") for row in rows] == [only_logged.text, *[failure.text] * 2]
    assert set().union(*rows) <= {*SAMPLE_COLUMNS, *scores}
    said = console.file.getvalue().replace("\n", " ")
    assert said.count("not scored: --reward a.py:judge: raised KeyError: 'x'") == 1
    assert said.count("not scored: --reward a.py:short: gave nan") == 1


def test_what_is_not_finite_is_null_in_the_file_and_reported_once(tmp_path, logger, console):
    with logger:
        for step in (1, 2):
            values = {"rollouts/kl_mean": math.nan, "rollouts/kl_max": -math.inf, "eval/x": 0.5}
            logger.log_batch(step, values)
    expected = {"rollouts/kl_mean": None, "rollouts/kl_max": None, "eval/x": 0.5}
    rows = strict_rows(tmp_path / "metrics.jsonl")
    assert rows == [{"rollouts/batch_step": step, **expected} for step in (1, 2)]
    (first, second) = scalars(tmp_path, "rollouts/kl_mean")
    assert (first[0], second[0]) == (1, 2)
    assert math.isnan(first[1])
    assert console.file.getvalue() == "not finite: rollouts/kl_mean, rollouts/kl_max\n"


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path, logger):
    with logger:
        logger.log_batch(
            1,
            {
                "rollouts/a": np.float32(0.25),
                "rollouts/b": torch.tensor(3, dtype=torch.int64),
                "rollouts/c": torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True),
                "rollouts/d": np.bool_(True),
            },
        )
    row = {"rollouts/a": 0.25, "rollouts/b": 3, "rollouts/c": 1.5, "rollouts/d": True}
    assert strict_rows(tmp_path / "metrics.jsonl") == [{"rollouts/batch_step": 1, **row}]
    for name, value in row.items():
        assert scalars(tmp_path, name) == [(1, value)]


def test_what_is_no_number_is_left_out_and_named_once(tmp_path, logger, console):
    with logger:
        for step in (1, 2):
            logger.log_batch(step, {"eval/list": [1, 2], "eval/many": torch.ones(2), "eval/x": 1})
    rows = strict_rows(tmp_path / "metrics.jsonl")
    assert rows == [{"rollouts/batch_step": step, "eval/x": 1} for step in (1, 2)]
    assert console.file.getvalue() == "not a number: eval/list, eval/many\n"


def test_text_is_kept_as_it_is(tmp_path, logger):
    text = '<think> "ä"\n[red]1[/red] \u2028 \x07 </think>'
    with logger:
        logger.log_media(2, {"examples/completion": text})
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row == {"rollouts/batch_step": 2, "examples/completion": text}
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("examples/completion/text_summary")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (2, text)


def test_histograms_are_what_tensorboard_makes_of_the_values(tmp_path, logger):
    values = np.random.default_rng(0).normal(size=200)
    with logger:
        logger.log_media(3, {"rewards/a_hist": Histogram.of(values)})
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    histogram = row["rewards/a_hist"]["histogram"]
    assert sum(histogram["counts"]) == 200
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert (histogram["edges"][0], histogram["edges"][-1]) == (values.min(), values.max())
    expected = histogram_pb("rewards/a_hist", values, buckets=len(histogram["counts"]))
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("rewards/a_hist/histogram_summary")
    assert event.step == 3
    shown, theirs = (make_ndarray(p) for p in (event.tensor_proto, expected.value[0].tensor))
    np.testing.assert_allclose(shown, theirs, rtol=1e-12)
    assert events.SummaryMetadata("rewards/a_hist/histogram_summary").plugin_data.plugin_name == (
        "histograms"
    )


@pytest.mark.parametrize(
    ("values", "counts"),
    [([], [0]), ([2.0, 2.0], [2]), ([math.nan, 1.0, math.inf], [1]), ([0.0, 1.0], None)],
)
def test_histograms_of_few_values(values, counts):
    histogram = Histogram.of(values)
    assert counts is None or histogram.counts == counts
    assert sum(histogram.counts) == len([value for value in values if math.isfinite(value)])


def test_tables_and_bars_are_markdown_in_tensorboard(tmp_path, logger):
    table = Table(["question", "reward"], [["1 | 2\n<b>?", 0.123456], ["x", None]])
    with logger:
        logger.log_media(1, {"generations": table, "rewards/breakdown": Bars({"a": 0.5})})
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("generations/text_summary")
    assert event.tensor_proto.string_val[0].decode() == (
        "| question | reward |\n| --- | --- |\n| 1 \\| 2 \\<b>? | 0.1235 |\n| x |  |"
    )
    (event,) = events.Tensors("rewards/breakdown/text_summary")
    assert event.tensor_proto.string_val[0].decode().endswith("| a | 0.5 |")


@pytest.mark.parametrize(
    "media",
    [
        "text",
        Histogram([0.0, 1.0], [3]),
        Table(["a"], [["b"], [None]]),
        Bars({"a": 1.0, "b": -2.0}),
    ],
)
def test_media_survive_the_file(media):
    assert from_json(json.loads(json.dumps(as_json(media)))) == media
    assert from_json(1.5) is None
    assert from_json(None) is None


def test_a_message_is_one_line_on_a_narrow_screen(logger, console):
    message = "saved in /a/rather/long/path/that/nobody/would/want/to/see/[broken]/in two"
    with logger:
        logger.say(message)
    assert console.file.getvalue() == message + "\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error_and_the_other_sinks_are_closed_whole(tmp_path, console):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    # TensorBoard comes first, so that it has the row that the file cannot take.
    sinks = [TensorBoardSink(tmp_path), JsonlSink(tmp_path / "metrics.jsonl")]
    with (
        pytest.raises(OSError, match="No space") as failure,
        Logger(sinks, console, tmp_path / "samples.jsonl") as logger,
    ):
        logger.log_batch(1, {"eval/x": 1.0})
    assert failure.value.errno == errno.ENOSPC
    assert scalars(tmp_path, "eval/x") == [(1, 1.0)]


def test_a_logger_without_sinks_writes_nothing(tmp_path, console):
    with Logger([], console, tmp_path / "samples.jsonl") as logger:
        logger.log_batch(1, {"eval/x": math.nan})
        logger.log_media(1, {"examples/completion": "text"})
        logger.log_invalid_step(1, random_experiences(1))
        logger.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert console.file.getvalue() == ""
