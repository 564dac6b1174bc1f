"""Figures of what a run has logged: how loss, gradient, KL and rewards went together."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from common.logger.sinks import BATCH_AXIS, STEP_AXIS
from common.views.figures.drawing import (
    COLOURS,
    cloud,
    curve,
    empty,
    interpolated,
    label,
    plain,
    plane,
    scene,
    sliding_mean,
)
from common.views.figures.history import History

LOSS, RATE, NORM = (f"training_step/{name}" for name in ("loss", "learning_rate", "grad_norm"))
BATCH_LOSS, BATCH_NORM = "training_epoch/loss_mean", "training_epoch/grad_norm_mean"
REWARD, KL = "rollouts/returns_mean", "rollouts/kl_mean"

WINDOW = 10
# Tasks are too many for a line each: they are put into so many bands, from hard to easy.
BANDS = 24


def loss_landscape(history: History) -> go.Figure:
    """Optimizer step, learning rate and loss."""
    title = "Loss landscape"
    points = history.step_points(STEP_AXIS, RATE, LOSS)
    if not len(points):
        return empty(title, "No optimizer step has a finite loss yet.")
    smooth = points.copy()
    smooth[:, 2] = sliding_mean(points[:, 2], WINDOW)
    if np.ptp(points[:, 1]) == 0:
        return plane(
            title,
            f"The learning rate was {points[0, 1]:g} in all these steps: what is left is the loss.",
            ("optimizer step", "loss"),
            [curve(points[:, [0, 2]], "loss"), curve(smooth[:, [0, 2]], f"mean of {WINDOW}")],
        )
    return scene(
        title,
        f"The loss, as a mean over {WINDOW} optimizer steps, and a surface near its points.",
        ("optimizer step", "learning rate", "loss"),
        [interpolated(smooth, "surface"), cloud(smooth, smooth[:, 2], "loss", "run")],
    )


def reward_landscape(history: History) -> go.Figure:
    """Batch, loss and reward: the run's path over an interpolated surface."""
    title = "Reward landscape"
    points = history.batch_points(BATCH_AXIS, BATCH_LOSS, REWARD)
    if not len(points):
        return empty(title, "No batch has both a loss and a reward.")
    return scene(
        title,
        "The path of the run, a point per batch, and a surface near its points.",
        ("batch", "loss", "mean return"),
        [interpolated(points, "surface"), cloud(points, points[:, 0], "batch", "run")],
    )


def training_dynamics(history: History) -> go.Figure:
    """Loss, gradient norm and reward, coloured by batch."""
    title = "Training dynamics"
    points = history.batch_points(BATCH_LOSS, BATCH_NORM, REWARD, BATCH_AXIS)
    if len(points):
        traces = [cloud(points[:, :3], points[:, 3], "batch", "run")]
        sentence = "A point per batch, from dark to bright."
        return scene(title, sentence, ("loss", "gradient norm", "mean return"), traces)
    points = history.step_points(LOSS, NORM, STEP_AXIS)
    if not len(points):
        return empty(title, "Nothing has been learned yet.")
    return scene(
        title,
        "The run has no rewards: a point per optimizer step stands at its loss and gradient norm.",
        ("loss", "gradient norm", "optimizer step"),
        [cloud(points, points[:, 2], "step", "run")],
    )


def policy_evolution(history: History) -> go.Figure:
    """KL from the reference, reward and batch."""
    title = "Policy evolution"
    points = history.batch_points(KL, REWARD, BATCH_AXIS)
    if len(points):
        sentence = "How far the policy went from its reference, and what it got for it."
        traces = [cloud(points, points[:, 2], "batch", "run")]
        return scene(title, sentence, ("KL (nats per token)", "mean return", "batch"), traces)
    points = history.batch_points(BATCH_AXIS, REWARD)
    if not len(points):
        return empty(title, "The run has logged neither a KL nor a reward.")
    return plane(
        title,
        "The run has no reference to measure a KL from (--monitor-kl loads one): what is left is "
        "the reward.",
        ("batch", "mean return"),
        [curve(points, "mean return")],
    )


def reward_components(history: History) -> go.Figure:
    """The mean score of every reward function by batch."""
    title = "Reward components"
    names = [
        name.removesuffix("_max").removeprefix("rewards/")
        for name in history.batch_names("rewards/", "_max")
    ]
    traces: list[go.Scatter3d] = []
    for position, name in enumerate(names):
        points = history.batch_points(BATCH_AXIS, f"rewards/{name}_mean")
        traces.append(
            go.Scatter3d(
                x=plain(points[:, 0]),
                y=[position] * len(points),
                z=plain(points[:, 1]),
                mode="lines+markers",
                marker_size=3,
                line_width=5,
                name=label(name),
            )
        )
    if not traces:
        return empty(title, "The run has logged no rewards.")
    axes = ("batch", "reward", "mean score")
    figure = scene(title, "The mean score of each reward, before its weight.", axes, traces)
    ticks = {"tickvals": list(range(len(names))), "ticktext": [label(name) for name in names]}
    figure.update_scenes(yaxis=ticks)
    return figure


def reward_surface(history: History) -> go.Figure:
    """Reward by batch and task, the tasks in bands from hard to easy."""
    title = "Reward surface"
    if not history.task_rewards:
        return empty(title, "The run has logged no rewards of single tasks.")
    steps = np.array([step for step, _ in history.task_rewards])
    seen: dict[str, list[float]] = {}
    for _, means in history.task_rewards:
        for task, mean in means.items():
            seen.setdefault(task, []).append(mean)
    by_ease = sorted(seen, key=lambda task: (np.mean(seen[task]), task))
    bands = min(BANDS, len(by_ease))
    band_of = {task: place * bands // len(by_ease) for place, task in enumerate(by_ease)}
    total, count = np.zeros((bands, len(steps))), np.zeros((bands, len(steps)))
    for column, (_, means) in enumerate(history.task_rewards):
        for task, mean in means.items():
            total[band_of[task], column] += mean
            count[band_of[task], column] += 1
    z = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    rows, columns = np.nonzero(count)
    return scene(
        title,
        f"{len(by_ease)} tasks in {bands} bands, from hard to easy over these batches.",
        ("batch", "band of tasks", "mean return"),
        [
            go.Surface(
                x=plain(steps),
                y=list(range(bands)),
                z=plain(z),
                colorscale=COLOURS,
                connectgaps=True,
                opacity=0.8,
                colorbar={"title": {"text": "return"}, "thickness": 14, "len": 0.6},
            ),
            go.Scatter3d(
                x=plain(steps[columns]),
                y=plain(rows),
                z=plain(z[rows, columns]),
                mode="markers",
                marker={"size": 2, "color": "rgba(40, 40, 50, 0.6)"},
                showlegend=False,
            ),
        ],
    )


def criteria_heatmap(history: History) -> go.Figure:
    """The criteria of the rubric over time."""
    title = "Criteria of the rubric"
    names = history.batch_names("criteria/", "_mean")
    if not names:
        return empty(title, "The run has no rubric (--rubric-file).")
    points = history.batch_points(BATCH_AXIS, *names)
    shown = [label(name.removeprefix("criteria/").removesuffix("_mean")) for name in names]
    heatmap = go.Heatmap(
        x=plain(points[:, 0]),
        y=shown,
        z=plain(points[:, 1:].T),
        colorscale=COLOURS,
        colorbar={"title": {"text": "mean"}, "thickness": 14},
    )
    return plane(title, "The mean score of each criterion.", ("batch", ""), [heatmap])
