"""Figures of the model itself, from the snapshots that were taken of it while it learned."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from common.views.figures.drawing import COLOURS, empty, label, plain, scene
from common.views.figures.history import History

# A layer's gradient vanishes or explodes if it is so many times that of the median layer.
VANISHING, EXPLODING = 1e-3, 1e3


def gradient_flow(history: History) -> go.Figure:
    """Layer, optimizer step and gradient norm, on a logarithmic scale."""
    title = "Gradient flow"
    if not history.gradients:
        return empty(title, "No gradients have been recorded.")
    steps = np.array([step for step, _ in history.gradients])
    layers = list(history.gradients[-1][1])
    norms = np.array(
        [[norms.get(layer, np.nan) for layer in layers] for _, norms in history.gradients]
    )
    logs = np.log10(np.maximum(norms, 1e-12)).T
    heat = {"title": {"text": "log10"}, "thickness": 14, "len": 0.6}
    grid_x, grid_y = (axis.ravel() for axis in np.meshgrid(steps, np.arange(len(layers))))
    points = go.Scatter3d(
        x=plain(grid_x),
        y=plain(grid_y),
        z=plain(logs.ravel()),
        mode="markers",
        marker={"size": 2.5, "color": plain(logs.ravel()), "colorscale": COLOURS, "colorbar": heat},
        showlegend=False,
    )
    surface = go.Surface(
        x=plain(steps),
        y=list(range(len(layers))),
        z=plain(logs),
        colorscale=COLOURS,
        opacity=0.8,
        showscale=False,
    )
    axes = ("optimizer step", "layer", "log10 of the gradient norm")
    figure = scene(title, troubled_layers(layers, norms), axes, [surface, points])
    ticks = {"tickvals": list(range(len(layers))), "ticktext": [label(layer) for layer in layers]}
    figure.update_scenes(yaxis=ticks)
    return figure


def troubled_layers(layers: list[str], norms: np.ndarray) -> str:
    """Which layers vanish or explode, by the medians over the snapshots (snapshots, layers)."""
    usual = np.nanmedian(norms, axis=0)
    ratio = usual / max(float(np.nanmedian(usual)), 1e-300)
    vanishing = [layer for layer, value in zip(layers, ratio, strict=True) if value < VANISHING]
    exploding = [layer for layer, value in zip(layers, ratio, strict=True) if value > EXPLODING]
    said = [
        f"{word}: {', '.join(map(label, names))}."
        for word, names in (("Vanishing", vanishing), ("Exploding", exploding))
        if names
    ]
    return " ".join(said) or "No layer's gradient vanishes or explodes."


def attention_pattern(history: History) -> go.Figure:
    """Query, key and weight in one head of one layer."""
    title = "Attention pattern"
    attention = history.attention
    if attention is None:
        return empty(title, "No attention has been recorded: the model may have none to show.")
    count = len(attention.tokens)
    # What a token cannot see is left out: it comes after.
    weights = np.where(np.tri(count, dtype=bool), np.array(attention.weights), np.nan)
    queries, keys = np.nonzero(np.tri(count, dtype=bool))
    heat = {"title": {"text": "weight"}, "thickness": 14, "len": 0.6}
    axes = ("key", "query", "weight")
    sentence = (
        f"Layer {attention.layer}, head {attention.head}, on a sample of batch "
        f"{attention.batch_step}."
    )
    points = go.Scatter3d(
        x=plain(keys),
        y=plain(queries),
        z=plain(weights[queries, keys]),
        mode="markers",
        marker={"size": 1.5, "color": "rgba(40, 40, 50, 0.5)"},
        showlegend=False,
    )
    surface = go.Surface(z=plain(weights), colorscale=COLOURS, colorbar=heat)
    figure = scene(title, sentence, axes, [surface, points])
    every = max(1, count // 16)
    shown = [label(token, 12) for token in attention.tokens[::every]]
    ticks = {"tickvals": list(range(0, count, every)), "ticktext": shown}
    figure.update_scenes(xaxis=ticks, yaxis=ticks)
    return figure


def embedding_trajectory(history: History) -> go.Figure:
    """Where the probe texts went, on the three directions in which they differ most."""
    title = "Embedding trajectory"
    snapshots = list(history.embeddings)
    if not snapshots:
        return empty(title, "No embeddings have been recorded.")
    vectors = np.array([snapshot.vectors for snapshot in snapshots])
    paths, share = principal_axes(vectors)
    traces = [
        go.Scatter3d(
            x=plain(path[:, 0]),
            y=plain(path[:, 1]),
            z=plain(path[:, 2]),
            mode="lines+markers",
            marker={"size": [3] * (len(path) - 1) + [7]},
            line_width=4,
            name=label(text),
            text=[f"batch {snapshot.batch_step}" for snapshot in snapshots],
        )
        for text, path in zip(snapshots[-1].texts, paths.swapaxes(0, 1), strict=True)
    ]
    sentence = (
        f"Mean last hidden state of fixed texts, batches {snapshots[0].batch_step} to "
        f"{snapshots[-1].batch_step} (large), on one basis with {share:.0%} of the variance."
    )
    return scene(title, sentence, ("first component", "second", "third"), traces)


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Vectors (snapshots, texts, width) in three dimensions, and the share of variance in those."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    centred = flat - flat.mean(axis=0)
    _, sizes, basis = np.linalg.svd(centred, full_matrices=False)
    placed = np.zeros((len(flat), 3))
    kept = min(3, len(basis))
    placed[:, :kept] = centred @ basis[:kept].T
    variance = sizes**2
    share = float(variance[:3].sum() / variance.sum()) if variance.sum() > 0 else 1.0
    return placed.reshape(*vectors.shape[:2], 3), share
