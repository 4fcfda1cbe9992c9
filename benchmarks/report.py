"""RESULTS.md and the README's figures, from the newest record of each device; none is typed by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from benchmarks import plots, tables
from benchmarks.results import RESULTS, ROOT, Record, load
from benchmarks.shapes import SETS, TARGETS
from benchmarks.titles import device

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
SHOWN = {"cpu": [row.name for row in TARGETS], "cuda": SETS["gpu"][:8]}  # in the README
Pictures = dict[str, str]  # by name: links, as the page needs them


def newest(folder: Path = RESULTS) -> list[Path]:
    """The newest record of each device that has the layer, and newer ones of other parts; CPUs first."""
    paths: list[Path] = []
    for found in sorted({path.parent for path in folder.glob("*/*.json")}):
        records = sorted(found.glob("*.json"), key=_date)
        first = max((k for k, path in enumerate(records) if "layer" in load(path)), default=len(records) - 1)
        paths += records[first:]
    return sorted(paths, key=lambda path: device(load(path)) != "cpu")


def where(record: Record) -> str:
    """The machine and the build in one line."""
    m = record["machine"]
    changed = " with uncommitted changes" if m["dirty"] else ""
    versions = {"torch": "torch", "triton": "triton", "cuda": "CUDA", "cudnn": "cuDNN", "driver": "driver"}
    software = [f"{name} {m[key]}" for key, name in versions.items() if m.get(key)]
    if clocks := m.get("clocks_mhz"):  # by name, or the highest of SM and memory
        values = [f"{k} {v}" for k, v in clocks.items()] if isinstance(clocks, dict) else clocks
        software.append(f"clocks {', '.join(values)} MHz")
    return (
        f"{m['device']}, {m['cores']} cores, {m['threads']} threads, {m['engine']} engine; "
        f"{', '.join(software)}, Python {m['python']}; commit {m['commit']}{changed}."
    )


def results_page(record: Record, source: str, pictures: Pictures | None = None) -> str:
    """All that one record has, as a part of RESULTS.md.

    Args:
        record: of one device.
        source: where it is kept, in words.
        pictures: links to its plots.
    """
    pictures, on = pictures or {}, device(record)
    parts = [f"## {DEVICES[on]}: {record['machine']['device']}", where(record), f"From `{source}`."]
    if layer := record.get("layer"):
        parts += _layer(layer, on, pictures)
    if "scaling" in pictures:
        parts += ["### Scaling", _picture(pictures, "scaling", "time and memory against each size")]
    if trained := record.get("train"):
        parts += ["### Training steps of the char-LM", tables.train(trained)]
        parts += [tables.train_words(net) for net in trained.values()]
        parts += [_picture(pictures, "train", "characters a second")] if "train" in pictures else []
    if sampled := record.get("sample"):
        words = (
            "The generator writes in native calls, the others in one loop for all, a character at a time in "
            "each of B streams; greedy text was compared first."
        )
        parts += ["### Sampling", words, tables.sample(sampled, on)]
    if costs := record.get("precision"):
        parts += [tables.precision(costs)]
    if counted := record.get("instructions"):
        words = "Of the engine's own code, one thread, one layer; they repeat where times do not."
        parts += ["### Instructions", words, tables.instructions(counted)]
    if micro := record.get("micro"):
        parts += ["### Micro-benchmarks", tables.micro(micro)]
    if checked := tables.checks(record):
        parts += ["### Tests on this machine", checked]
    if busy := record.get("busy"):
        parts += ["### Beside another busy process", "Time beside it over time alone.", tables.busy(busy)]
    return "\n\n".join(parts) + "\n"


def _layer(layer: dict[str, Record], on: str, pictures: Pictures) -> list[str]:
    rows = list(layer.values())
    parts = [
        "### The layer",
        "Ratios above 1: ours is faster than the faster of torch's two settings. A wrong result has no time.",
        tables.table(rows, tables.times(on)),
        "#### Where torch is faster",
        tables.losses(layer),
        "#### Geometric means",
        tables.means(layer),
    ]
    if "grid" in pictures:
        parts.append(_picture(pictures, "grid", "ratio of every row, in order"))
    parts += [
        "#### Steps and floors",
        "A step is one of T, through all layers. The input products are x·W_ih^T, and with a backward dx "
        "and dW_ih, as torch.mm computes them; a dash where these alone would take longer. The floor is the "
        "larger of two times: the products' FLOPs at the measured ceiling, the bytes that must move at the "
        "bandwidth of a large copy. What stays in the caches can be faster than such a copy.",
        tables.table(rows, tables.FLOOR),
    ]
    if tables.has(layer, "cold_ms"):
        cold = [row for row in rows if "cold_ms" in row]
        words = "Cold: the L2 cache is flushed before each run."
        parts += ["#### Warm and cold", words, tables.table(cold, tables.cold())]
    few = f" Others' code runs at {', '.join(SETS['rivals'])}." if on == "cuda" else ""
    parts += ["#### Everyone", f"Medians in ms. NumPy computes in float64.{few}"]
    parts += [tables.table(rows, tables.rivals(layer, on))]
    if reasons := tables.reasons(layer, on):
        parts += ["What has a dash was not run:", "\n".join(reasons)]
    return [
        *parts,
        "#### Memory",
        "Peak memory is what one pass adds to data and weights.",
        tables.table(tables.saves(layer), tables.memory(on)),
    ]


def page_of(records: Sequence[tuple[Record, str, Pictures]]) -> str:
    """All of RESULTS.md."""
    head = "# Results\n\nGenerated by `python -m benchmarks.report`: medians, losses as they are.\n"
    return "\n".join([head, *(results_page(*record) for record in records)])


def summary(record: Record, pictures: Pictures | None = None) -> str:
    """The part of the README about one device."""
    layer, on = record.get("layer", {}), device(record)
    rows = [layer[name] for name in SHOWN[on] if name in layer]
    parts = [tables.table(rows, tables.short(on))] if rows else []
    ratios = [row["ratio"] for row in layer.values() if "ratio" in row]
    if ratios:
        mean, lost = geometric_mean(ratios), sum(ratio < 1 for ratio in ratios)
        parts.append(
            f"Over all {len(ratios)} shapes fusedlstm is {mean:.2f} times as fast as the faster nn.LSTM "
            f"setting (geometric mean); nn.LSTM is faster at {lost} of them."
        )
    picture = next((name for name in ("scaling", "grid") if name in (pictures or {})), None)
    if pictures and picture:
        parts.append(_picture(pictures, picture, f"fusedlstm against nn.LSTM on a {DEVICES[on]}"))
    if "train" in record and on == "cpu":
        words = "Whole training steps of the character model, and of a transformer of about its size:"
        parts += [words, tables.train_short(record["train"])]
    written = {
        n: net
        for n, net in record.get("sample", {}).items()
        if set(tables.WRITERS) & set(net.get("chars_per_s", ()))
    }
    if written and on == "cpu":
        parts += [
            "Characters a second that a trained model writes:",
            tables.sample_short(written, on),
        ]
    return "\n\n".join([*parts, where(record)])


def filled(page: str, text: str) -> str:
    """The page with the text between its markers.

    Raises:
        ValueError: there is no such pair of markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page must have {BEGIN} and after it {END}: add them where the table goes")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(
    record: Path | None = None,
    page: Path = ROOT / "benchmarks" / "RESULTS.md",
    readme: Path = ROOT / "README.md",
) -> None:
    """Draws the plots, and writes the results page and the README's part.

    Args:
        record: what a benchmark wrote; by default the newest of each device under benchmarks/results.
        page: the results page.
        readme: a page with markers.
    """
    paths = [record] if record else newest()
    records = [load(path) for path in paths]
    drawn = [plots.draw(found, path) for found, path in zip(records, paths, strict=True)]
    on_page, on_readme = ([_links(pictures, target) for pictures in drawn] for target in (page, readme))
    sources = [_source(path) for path in paths]
    page.write_text(page_of(list(zip(records, sources, on_page, strict=True))))
    texts = [summary(found, links) for found, links in zip(records, on_readme, strict=True)]
    readme.write_text(filled(readme.read_text(), "\n\n".join([*texts, "All rows: benchmarks/RESULTS.md."])))
    print(f"wrote {page} and {readme}")


def _links(pictures: dict[str, Path], page: Path) -> Pictures:
    folder = page.resolve().parent
    return {name: Path(os.path.relpath(path.resolve(), folder)).as_posix() for name, path in pictures.items()}


def _picture(pictures: Pictures, name: str, words: str) -> str:
    return f"![{words}]({pictures[name]})"


def _source(path: Path) -> str:
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _date(path: Path) -> str:
    """When the last of a record was measured."""
    parts = (part for name, part in load(path).items() if name != "machine" and isinstance(part, dict))
    return max(
        (v["date"] for part in parts for v in part.values() if isinstance(v, dict) and "date" in v),
        default="",
    )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
