"""TensorBoard's Custom Scalars tab has its panels from the moment a run begins."""

# protobuf makes its classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from common.logger.tensorboard_layout import BANDS, LINES
from common.logger.tensorboard_sink import TensorBoardSink
from tests.test_metrics_page import documented


def written_layout(directory) -> layout_pb2.Layout:
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    plugin = events.SummaryMetadata(metadata.CONFIG_SUMMARY_TAG).plugin_data.plugin_name
    assert (event.step, plugin) == (0, "custom_scalars")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def test_a_sink_writes_the_layout_once_before_any_row(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.log({"rollouts/batch_step": 1, "rollouts/returns_mean": 0.5})
    sink.close(0)
    layout = written_layout(tmp_path)
    assert [category.title for category in layout.category] == [
        *("Reward", "KL and entropy", "Loss and gradient", "Lengths", "Time")
    ]
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    assert len(charts) == sum(map(len, [*LINES.values(), *BANDS.values()]))
    (series,) = charts["return, with its quartiles"].margin.series
    assert (series.value, series.lower, series.upper) == (
        *("rollouts/returns_mean", "rollouts/returns_q25", "rollouts/returns_q75"),
    )


def test_each_pattern_takes_its_metric_and_no_longer_name(tmp_path):
    TensorBoardSink(tmp_path).close(0)
    charts = [c for category in written_layout(tmp_path).category for c in category.chart]
    patterns = [tag for chart in charts for tag in chart.multiline.tag]
    names = [name for charts in LINES.values() for metrics in charts.values() for name in metrics]
    # TensorBoard compares from the beginning of a name.
    assert [[n for n in names if re.match(p, n)] for p in patterns] == [[name] for name in names]
    assert not any(re.match(pattern, name + "_hist") for pattern in patterns for name in names)


def test_the_panels_are_of_metrics_that_are_logged():
    patterns = documented().values()
    charts = [*LINES.values(), *BANDS.values()]
    names = {name for category in charts for metrics in category.values() for name in metrics}
    assert [name for name in names if not any(p.fullmatch(name) for p in patterns)] == []
