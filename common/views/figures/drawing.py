"""The parts that figures are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

COLOURS = "Viridis"
INK = "#2a2a33"
_DIGITS = 5
_GRID = 24
# Angle quotation marks for brackets, and signs for what breaks a line.
_HARMLESS = str.maketrans({"<": "\u2039", ">": "\u203a", "\n": "⏎", "\t": "⇥"})


def plain(values: np.ndarray | Sequence[Any]) -> list[Any]:
    """Rounded lists of Python's, null for NaN: what every reader of plotly's JSON can draw."""
    array = np.asarray(values)
    if array.ndim > 1:
        return [plain(row) for row in array]
    if array.dtype.kind != "f":
        return array.tolist()
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in array]


def label(text: str, longest: int = 40) -> str:
    """Text of a model or a user in one line, with nothing in it that plotly reads as a tag.

    What is flat is read as HTML and what has depth is not, so that escaping would not do.
    """
    shown = text.translate(_HARMLESS)
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return "".join(c if c.isprintable() else "�" for c in shown)


def scene(title: str, sentence: str, axes: Sequence[str], traces: Sequence[Any]) -> go.Figure:
    """A figure of three axes."""
    figure = _figure(title, sentence, traces)
    x, y, z = axes
    figure.update_layout(scene={"xaxis_title": x, "yaxis_title": y, "zaxis_title": z})
    camera = {"eye": {"x": 1.4, "y": -1.5, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.2}}
    figure.update_scenes(aspectmode="cube", camera=camera)
    return figure


def plane(title: str, sentence: str, axes: Sequence[str], traces: Sequence[Any]) -> go.Figure:
    """A figure of two axes."""
    figure = _figure(title, sentence, traces)
    figure.update_layout(xaxis_title=axes[0], yaxis_title=axes[1])
    return figure


def empty(title: str, sentence: str) -> go.Figure:
    """A page that says why there is nothing on it."""
    figure = _figure(title, "", [])
    figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    figure.add_annotation(text=sentence, showarrow=False, font_size=18)
    return figure


def _figure(title: str, sentence: str, traces: Sequence[Any]) -> go.Figure:
    figure = go.Figure(traces)
    figure.update_layout(
        title={"text": title, "subtitle": {"text": sentence}, "x": 0.03},
        template="plotly_white",
        font_color=INK,
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
        legend={"orientation": "h", "y": -0.02},
    )
    return figure


def cloud(points: np.ndarray, colour: np.ndarray, bar: str, name: str) -> go.Scatter3d:
    """Points (n, 3) joined in their order, coloured by a value with a scale beside it."""
    x, y, z = points.T
    return go.Scatter3d(
        x=plain(x),
        y=plain(y),
        z=plain(z),
        mode="lines+markers",
        name=name,
        line={"color": "rgba(60, 60, 70, 0.5)", "width": 4},
        marker={
            "size": 4.5,
            "color": plain(colour),
            "colorscale": COLOURS,
            "colorbar": {"title": {"text": bar}, "thickness": 14, "len": 0.6},
        },
        showlegend=False,
    )


def curve(points: np.ndarray, name: str) -> go.Scattergl:
    """Points (n, 2), and the line through them."""
    x, y = points.T
    return go.Scattergl(x=plain(x), y=plain(y), mode="lines+markers", name=name)


def interpolated(points: np.ndarray, name: str) -> go.Surface:
    """A surface near all points (n, 3), by inverse squared distances (Shepard's method).

    Distances are in units of the spread of either axis.
    """
    flat, heights = points[:, :2], points[:, 2]
    low, high = flat.min(axis=0), flat.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    xs, ys = (np.linspace(low[i], high[i], _GRID) for i in (0, 1))
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    distances = (((grid[:, :, None] - flat) / spread) ** 2).sum(axis=-1)
    weights = 1 / (distances + 1e-3)
    z = (weights * heights).sum(axis=-1) / weights.sum(axis=-1)
    return go.Surface(
        x=plain(xs),
        y=plain(ys),
        z=plain(z),
        name=name,
        colorscale=COLOURS,
        opacity=0.55,
        showscale=False,
    )


def sliding_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and those before it, as many as the window holds."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
