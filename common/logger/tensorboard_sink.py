"""TensorBoard as a sink, without torch's writer, whose import takes a second."""

# protobuf makes its classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.metadata import create_summary_metadata
from tensorboard.plugins.mesh import metadata as mesh
from tensorboard.plugins.mesh.plugin_data_pb2 import MeshPluginData
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from common.logger.media import Histogram, Media, Scene, as_markdown
from common.logger.sinks import AXES, Row, ShownRun, axis_of
from common.logger.tensorboard_layout import layout_summary

# It writes at most this many seconds after a row, so that a killed run keeps its rows.
FLUSH_SECONDS = 1

_DARK, _BRIGHT = np.array([[68, 1, 84]]), np.array([[253, 231, 37]])


class TensorBoardSink:
    def __init__(self, directory: Path) -> None:
        self._writer = EventFileWriter(str(directory), flush_secs=FLUSH_SECONDS)
        self._add(layout_summary(), 0)

    def log(self, row: Row) -> None:
        for axis in AXES:
            names = [name for name in row if name not in AXES and axis_of(name) == axis]
            if names:
                values = [Summary.Value(tag=name, simple_value=row[name]) for name in names]
                self._add(Summary(value=values), int(row[axis]))

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        """Tables and bars as text, figures as clouds of points: it can show no more of them."""
        if isinstance(media, Histogram):
            summary = _histogram(name, media)
        elif isinstance(media, Scene):
            if not len(points := media.points()):
                return
            summary = _point_cloud(name, points)
        else:
            text = media if isinstance(media, str) else as_markdown(media)
            summary = text_pb(f"{name}/text_summary", text)
        self._add(summary, batch_step)

    def _add(self, summary: Any, step: int) -> None:
        self._writer.add_event(Event(summary=summary, step=step, wall_time=time.time()))

    def close(self, exit_code: int) -> None:
        self._writer.close()


def _histogram(name: str, histogram: Histogram) -> Any:
    """What TensorBoard's own function makes of values, from counts that are there already."""
    edges = histogram.edges
    buckets = np.array([edges[:-1], edges[1:], histogram.counts], dtype=np.float64).T
    summary = Summary()
    summary.value.add(
        tag=f"{name}/histogram_summary",
        metadata=create_summary_metadata(display_name=None, description=None),
        tensor=make_tensor_proto(buckets, dtype=np.float64),
    )
    return summary


def _point_cloud(name: str, points: np.ndarray) -> Any:
    """Points (n, 3) in a cube around the origin, from dark to bright in their order."""
    low, high = points.min(axis=0), points.max(axis=0)
    vertices = 2 * (points - low) / np.where(high > low, high - low, 1) - 1
    place = np.linspace(0, 1, len(points))[:, None]
    colours = (1 - place) * _DARK + place * _BRIGHT
    parts = {
        MeshPluginData.VERTEX: vertices[None].astype(np.float32),
        MeshPluginData.COLOR: colours[None].astype(np.uint8),
    }
    summary = Summary()
    for content, values in parts.items():
        components = mesh.get_components_bitmask(list(parts))
        shape = list(values.shape)
        summary.value.add(
            tag=mesh.get_instance_name(name, content),
            metadata=mesh.create_summary_metadata(name, name, content, components, shape),
            tensor=make_tensor_proto(values),
        )
    return summary


def open_tensorboard(run: ShownRun) -> TensorBoardSink:
    """In place of the files of a run that is resumed, which logs all its rows anew."""
    for stale in run.directory.glob("events.out.tfevents.*"):
        stale.unlink()
    return TensorBoardSink(run.directory)
