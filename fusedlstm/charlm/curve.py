"""The picture of a run: its losses in bits per character and, below, its learning rate, as PNG and SVG."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from fusedlstm.charlm.checkpoint import write_whole
from fusedlstm.charlm.report import bits

Metrics = Sequence[dict[str, Any]]
INK, FAINT = "#22272e", "#6b7280"
# Okabe and Ito's colours, which the colour-blind can tell apart.
LOSSES = {"train": ("training", "#56b4e9", 1.0), "val": ("validation", "#d55e00", 2.0)}  # and the width
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": FAINT,
    "axes.edgecolor": "#c4c9d1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaee",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "svg.hashsalt": "fusedlstm",  # the same names in every file
}
START = 0.02  # share of the steps whose losses, far above the rest, do not set the scale
LABEL = 0.055  # height of a label, as a share of the axis


def draw(run: Path, lines: Metrics) -> None:
    """Writes loss.png and loss.svg; nothing while there is no loss to show.

    Args:
        run: folder of the run.
        lines: the metrics by step, losses in nats, each maybe without some or with None.
    """
    if not any(_series(lines, name)[0] for name in LOSSES):
        return
    with mpl.rc_context(STYLE):
        figure = _figure(run.resolve().name, lines)
        for suffix in ("png", "svg"):
            buffer = BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else {})
            write_whole(run / f"loss.{suffix}", buffer.getvalue())


def _figure(title: str, lines: Metrics) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    rates = _series(lines, "learning_rate")
    if len(set(rates[1])) > 1:
        losses, below = figure.subplots(2, sharex=True, height_ratios=[6, 1])
        below.plot(*rates, color=FAINT, linewidth=1)
        below.set_ylim(bottom=0)
        below.yaxis.set_major_locator(MaxNLocator(2))
        below.set_title("learning rate", fontsize=9, fontweight="normal", color=FAINT)
    else:
        losses = below = figure.subplots()
    below.set_xlabel("step")
    below.xaxis.set_major_formatter(EngFormatter(sep=""))
    losses.set_title(f"{title}: bits per character")
    _plot(losses, lines)
    return figure


def _plot(axes: Axes, lines: Metrics) -> None:
    """The losses, each with its name and last value at its end."""
    last_step = max(line["step"] for line in lines)
    ends, settled = [], []
    for name, (words, colour, width) in LOSSES.items():
        steps, nats = _series(lines, name)
        if not steps:
            continue
        values = [bits(v) for v in nats]
        marker = "o" if name == "val" and len(steps) <= 40 else "" if len(steps) > 1 else "o"
        axes.plot(steps, values, color=colour, linewidth=width, marker=marker, markersize=3.5)
        settled += [v for step, v in zip(steps, values, strict=True) if step >= START * last_step] or values
        ends.append((values[-1], f"{words} {values[-1]:.3f}", colour))
        best = min(range(len(values)), key=values.__getitem__)
        side = (
            "left"
            if steps[best] < 0.1 * last_step
            else "right"
            if steps[best] > 0.9 * last_step
            else "center"
        )
        if name == "val" and best < len(values) - 1:
            at = steps[best], values[best]
            words = f"best {values[best]:.3f}\nat step {steps[best]:,}"
            style = {"arrowstyle": "-", "color": colour, "linewidth": 0.8}
            axes.annotate(
                words, at, (0, -26), textcoords="offset points", ha=side, va="top", arrowprops=style
            )
    low, high = min(settled), max(settled)
    margin = 0.08 * (high - low) or 0.1
    bottom, top = low - 2.5 * margin, high + margin
    axes.set_ylim(bottom, top)
    axes.set_xlim(0, max(last_step, 1))
    room = LABEL * (top - bottom)
    ends.sort()
    heights = [value for value, _, _ in ends]
    if len(ends) == 2 and heights[1] - heights[0] < room:  # side by side they would lie over each other
        middle = sum(heights) / 2
        heights = [middle - room / 2, middle + room / 2]
    for height, (_, words, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            words, (1, height), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=colour, va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _series(lines: Metrics, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure, the last told of each step, where it is a number."""
    values = {line["step"]: line[name] for line in lines if line.get(name) is not None}
    steps = sorted(values)
    return steps, [values[step] for step in steps]
