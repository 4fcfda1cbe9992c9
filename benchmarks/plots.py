"""Pictures of a record, as PNG and SVG beside it: the grid of ratios, scaling, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from benchmarks.results import Record, load
from benchmarks.shapes import FORWARD, INFER, TRAIN
from benchmarks.titles import device, title

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {
    "ours": "#0072b2", "torch": "#d55e00", "torch_plain": "#e69f00", "gpt": "#009e73", "numpy": "#cc79a7",
}  # fmt: skip
OTHER, INK, FAINT = "#56b4e9", "#22272e", "#6b7280"
MARKERS = {TRAIN: ("o", 5.5), FORWARD: ("^", 6.5), INFER: ("D", 5.0)}  # and their sizes
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": FAINT,
    "axes.edgecolor": "#c4c9d1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaee",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "fusedlstm",  # the same names in every file
}
WIDTH, DPI = 8.0, 150  # inches; 1200 pixels, of which a page shows 800
AXES = {
    "T": ("steps T", "log"), "B": ("sequences B", "log"), "H": ("hidden units H", "log"),
    "L": ("layers L", "linear"), "threads": ("threads", "linear"),
}  # fmt: skip


def draw(record: Record, path: Path) -> dict[str, Path]:
    """Draws what the record has, beside it: benchmarks/results/DEVICE/COMMIT-NAME.png and .svg.

    Args:
        record: with any of "layer", "scaling" and "train".
        path: of the record.

    Returns:
        The PNG of each picture, by "grid", "scaling" and "train".
    """
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, picture in PICTURES.items():
            figure = picture(record)
            if figure is not None:
                drawn[name] = path.with_name(f"{path.stem}-{name}.png")
                _save_png(figure, drawn[name])
                figure.savefig(drawn[name].with_suffix(".svg"), metadata={"Date": None})
    return drawn


def grid(record: Record) -> Figure | None:
    """How many times as fast as the fastest torch each row is, in order; losses stand out."""
    timed = [row for row in record.get("layer", {}).values() if "ratio" in row]
    rows = sorted(timed, key=lambda row: (row["ratio"], row["name"]))
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 1.3 + 0.178 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for y, row in enumerate(rows):
        won = row["ratio"] >= 1
        colour = COLOURS["ours" if won else "torch"]
        ax.plot([1, row["ratio"]], [y, y], color=colour, linewidth=1.6, alpha=0.45, solid_capstyle="butt")
        marker, size = MARKERS[row["mode"]]
        ax.plot(row["ratio"], y, marker, color=colour, markersize=size, markeredgecolor="white")
        ax.annotate(
            f"{row['ratio']:.2f}", (row["ratio"], y), (7 if won else -7, 0), textcoords="offset points",
            ha="left" if won else "right", va="center", fontsize=8, color=colour,
            fontweight="normal" if won else "bold",
        )  # fmt: skip
    ratios = [row["ratio"] for row in rows]
    ax.set_xscale("log")
    ax.set_xlim(min(0.78, 0.85 * ratios[0]), max(2.2, 1.18 * ratios[-1]))
    ax.set_ylim(-0.8, len(rows) - 0.2)
    ticks = [t for t in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32) if _inside(ax, t)]
    _ticks(ax.xaxis, ticks)
    ax.axvline(1, color=INK, linewidth=1.1, zorder=1)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    for label, ratio in zip(ax.get_yticklabels(), ratios, strict=True):
        label.set_color(INK if ratio >= 1 else COLOURS["torch"])
        label.set_fontweight("normal" if ratio >= 1 else "bold")
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    lost = sum(ratio < 1 for ratio in ratios)
    ax.set_title(f"fusedlstm is faster at {len(rows) - lost} shapes, nn.LSTM at {lost}", pad=22)
    ax.set_xlabel("time of nn.LSTM, in its faster setting, over fusedlstm's (log scale)")
    used = [mode for mode in MARKERS if any(row["mode"] == mode for row in rows)]
    for mode in used:
        marker, size = MARKERS[mode]
        ax.plot([], [], marker, color=FAINT, markersize=size, label=mode)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(used), borderpad=0, handletextpad=0.1)
    return figure


def scaling(record: Record) -> Figure | None:
    """Time against each axis, and memory against T, one panel each."""
    axes: Mapping[str, Record] = record.get("scaling", {})
    panels: list[tuple[str, Record, str]] = [
        (name, axes[name], "ms") for name in AXES if axes.get(name, {}).get("values")
    ]
    if any(peak for peaks in axes.get("T", {}).get("peak_bytes", {}).values() for peak in peaks):
        panels.append(("T", axes["T"], "peak_bytes"))
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.09)
    figure = Figure(figsize=(WIDTH, 0.75 + 2.35 * lines), layout=layout)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    where = device(record)
    for ax, (name, found, part) in zip(grid, panels, strict=False):
        _panel(ax, name, found, part, where)
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    handles = {line.get_label(): line for ax in figure.axes for line in ax.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles))
    base = panels[0][1]["base"]
    sizes = ", ".join(f"{size}={base[size]}" for size in ("H", "L", "B", "T", "I"))
    figure.supxlabel(
        f"all else as in {sizes}, {base['dtype']}, {base['mode']}",
        x=0.01,
        ha="left",
        fontsize=8.5,
        color=FAINT,
    )
    return figure


def train(record: Record) -> Figure | None:
    """Characters a second of the trainer, for each dtype."""
    nets = {name: net for name, net in record.get("train", {}).items() if "chars_per_s" in net}
    if not nets:
        return None
    where, bars = device(record), []
    for name, net in nets.items():
        for dtype in net["torch_setting"]:
            speeds = {who: net["chars_per_s"].get(f"{who} {dtype}") for who in ("ours", "torch", "gpt")}
            bars.append((f"{name}, {dtype}", {who: v for who, v in speeds.items() if v is not None}))
    figure = Figure(figsize=(WIDTH, 0.8 + 0.27 * sum(len(b) + 1 for _, b in bars)), layout="constrained")
    ax = figure.subplots()
    y, most = 0.0, max(v for _, speeds in bars for v in speeds.values())
    for head, speeds in bars:
        ax.text(0, y, head, va="center", fontweight="bold", fontsize=9)
        for who, value in speeds.items():
            y -= 1
            ax.barh(y, value, 0.82, color=COLOURS[who])
            ax.text(value + 0.008 * most, y, f"{value:,.0f}", va="center", fontsize=8.5)
            ax.text(-0.008 * most, y, title(who, where), va="center", ha="right", fontsize=9)
        y -= 1.2
    ax.set_xlim(0, 1.1 * most)
    ax.set_yticks([])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set_xlabel("characters a second, whole training steps")
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    return figure


def _save_png(figure: Figure, path: Path) -> None:
    """Writes a PNG of few colours, a third of matplotlib's own in size."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def _panel(ax: Axes, name: str, found: Record, part: str, where: str) -> None:
    scale = AXES[name][1]
    unit = 1.0 if part == "ms" else 1e-6
    most = 0.0
    for who, values in found[part].items():
        points = [(x, unit * v) for x, v in zip(found["values"], values, strict=False) if v is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            colour, width = COLOURS.get(who, OTHER), 2.2 if who == "ours" else 1.5
            order = 3 if who == "ours" else 2
            ax.plot(xs, ys, "o-", color=colour, linewidth=width, label=title(who, where), zorder=order)
            most = max(most, *ys)
    ax.set_xscale(scale)
    ax.set_yscale(scale)
    ax.set_title(f"{'ms' if part == 'ms' else 'peak MB'} against {AXES[name][0]}")
    values = found["values"]
    _ticks(ax.xaxis, values if len(values) <= 6 else values[::2])
    if scale == "linear":
        ax.set_ylim(0, 1.08 * most)
        ax.margins(x=0.08)
    else:
        ax.yaxis.set_major_formatter(FuncFormatter(_short))
        ax.yaxis.set_minor_locator(NullLocator())


def _ticks(axis: Any, values: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _inside(ax: Axes, value: float) -> bool:
    low, high = ax.get_xlim()
    return low <= value <= high


PICTURES: dict[str, Callable[[Record], Figure | None]] = {"grid": grid, "scaling": scaling, "train": train}


def main(record: Path) -> None:
    """Draws a record's pictures beside it.

    Args:
        record: what a benchmark wrote.
    """
    for path in draw(load(record), record).values():
        print(f"drawn: {path} and .svg")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
