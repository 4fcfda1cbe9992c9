"""The tables of a record in Markdown; what a record does not have is a dash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.results import Record
from benchmarks.shapes import INFER
from benchmarks.titles import PLAIN, TITLES, number, title

DASH = "-"
Column = tuple[str, Callable[[Record], str]]
RIVALS = ("torch", "torch_plain", "compile", "loop", "numpy", "flashrnn", "haste")
TRAINED = ("ours", "torch", "gpt")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def table(rows: Iterable[Record], columns: Sequence[Column]) -> str:
    """A line for each row, a cell for each column."""
    return markdown([head for head, _ in columns], ([cell(row) for _, cell in columns] for row in rows))


def found(path: str, form: Callable[[Any], str] = str) -> Callable[[Record], str]:
    """A cell: the value at a path such as "ms.ours.p50", or a dash where there is none."""

    def cell(row: Record) -> str:
        value: Any = row
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return DASH if value is None else form(value)

    return cell


def megabytes(value: float) -> str:
    return number(value / 1e6)


def ratio(row: Record) -> str:
    if "ratio" in row:
        return f"{row['ratio']:.2f}"
    return "not measured" if "ours" in row.get("skipped", {}) else "wrong result: no time"


def mode(row: Record) -> str:
    return row["mode"] + (", both directions" if row["bidirectional"] else "")


def step_us(row: Record) -> float | None:
    """Microseconds of a pass for each of its steps in time."""
    return 1e3 * row["ms"]["ours"]["p50"] / row["T"] if "ms" in row else None


def step_us_alone(row: Record) -> float | None:
    """The same without the input products, as torch.mm computes them; None where they alone take longer."""
    if "ms" not in row or row.get("input_product_ms") is None:
        return None
    left = row["ms"]["ours"]["p50"] - row["input_product_ms"]
    return 1e3 * left / row["T"] if left > 0 else None


def computed(value: Callable[[Record], float | None]) -> Callable[[Record], str]:
    """A cell of what is derived from the row."""

    def cell(row: Record) -> str:
        found = value(row)
        return DASH if found is None else number(found)

    return cell


NAME: Column = ("row", found("name"))
SHAPE: list[Column] = [
    *((size, found(size)) for size in ("H", "L", "B", "T", "I")),
    ("dtype", found("dtype")), ("mode", mode),
]  # fmt: skip
FLOOR: list[Column] = [
    NAME,
    ("µs a step", computed(step_us)), ("without input products", computed(step_us_alone)),
    ("floor ms", found("floor.ms", number)), ("bound by", found("floor.bound")),
    ("GFLOP", found("flops", lambda n: number(n / 1e9))), ("MB", found("floor.bytes", megabytes)),
    ("share of floor", found("share", "{:.0%}".format)),
]  # fmt: skip


def times(where: str) -> list[Column]:
    """Ours with its spread, torch in both settings, and the ratio."""
    return [
        NAME, *SHAPE, ("our kernel", found("kernel")), ("`auto` takes", found("auto")),
        *((f"{q} ms", found(f"ms.ours.{q}", number)) for q in ("p20", "p50", "p80")),
        ("nn.LSTM ms", found("ms.torch.p50", number)),
        (f"{PLAIN[where]} ms", found("ms.torch_plain.p50", number)),
        ("faster nn.LSTM / ours", ratio),
    ]  # fmt: skip


def cold() -> list[Column]:
    """With nothing in the L2 cache; and which way cuDNN went, at which clock."""
    names = {"ours": "ours", "torch": "nn.LSTM"}
    return (
        [NAME]
        + [
            column
            for name, head in names.items()
            for column in (
                (f"{head} warm ms", found(f"ms.{name}.p50", number)),
                (f"{head} cold ms", found(f"cold_ms.{name}.p50", number)),
            )
        ]
        + [("cuDNN's algorithm", found("cudnn")), ("SM clock MHz", found("clock_mhz"))]
    )


def rivals(rows: Mapping[str, Record], where: str) -> list[Column]:
    """Everyone's median: further backends of ours, then torch's and others' code."""
    own = sorted({name for row in rows.values() for name in row.get("ms", {}) if name.startswith("ours:")})
    return [NAME] + [
        (title(name, where), found(f"ms.{name}.p50", number)) for name in ("ours", *own, *RIVALS)
    ]


def memory(where: str) -> list[Column]:
    """Peak memory, and what is saved for the backward."""
    return [
        NAME,
        ("peak MB ours", found("peak_bytes.ours", megabytes)),
        ("nn.LSTM", found("peak_bytes.torch", megabytes)),
        (PLAIN[where], found("peak_bytes.torch_plain", megabytes)),
        ("saved MB a layer, ours", found("saved_bytes_per_layer.ours", megabytes)),
        ("gates + h + c", found("saved_bytes_per_layer.allowed", megabytes)),
        ("nn.LSTM", found("saved_bytes_per_layer.torch", megabytes)),
    ]


def reasons(rows: Mapping[str, Record], where: str) -> list[str]:
    """Why contenders have a dash, each reason once with the rows that it holds for."""
    held: dict[tuple[str, str], list[str]] = {}
    for name, row in rows.items():
        for who, why in row.get("skipped", {}).items():
            held.setdefault((who, why), []).append(name)
    return [f"- {title(who, where)}: {why} ({_some(names, len(rows))})" for (who, why), names in held.items()]


def losses(rows: Mapping[str, Record]) -> str:
    """The rows at which torch is faster, the largest loss first."""
    lost = sorted((row for row in rows.values() if row.get("ratio", 1.0) < 1), key=lambda row: row["ratio"])
    if not lost:
        return "Nowhere in this record."
    return "\n".join(
        f"- {row['name']} (H={row['H']}, L={row['L']}, B={row['B']}, T={row['T']}, {row['dtype']}, "
        f"{mode(row)}): nn.LSTM takes {row['ratio']:.2f} of our time; `auto` takes {row.get('auto', DASH)}"
        for row in lost
    )


def means(rows: Mapping[str, Record]) -> str:
    """Geometric means of the ratios, for each mode and dtype and over all."""
    timed = [row for row in rows.values() if "ratio" in row]
    groups: dict[tuple[str, str], list[float]] = {}
    for row in timed:
        groups.setdefault((row["mode"], row["dtype"]), []).append(row["ratio"])
    lines = [[*group, *_mean(ratios)] for group, ratios in sorted(groups.items())]
    if timed:
        lines.append(["all", "all", *_mean([row["ratio"] for row in timed])])
    return markdown(["mode", "dtype", "rows", "geometric mean of faster nn.LSTM / ours"], lines)


def train(trained: Mapping[str, Record]) -> str:
    """Training steps of ours, torch's and a transformer's, in each dtype."""
    heads = [
        "net", "dtype", "ours ms/step", "nn.LSTM ms/step", "ours chars/s", "nn.LSTM chars/s",
        "transformer chars/s", "nn.LSTM / ours", "float32 nn.LSTM / ours",
    ]  # fmt: skip
    lines = []
    for name, net in trained.items():
        shape = f"{name}, V={net['V']}, B={net['B']}, T={net['T']}"
        for dtype in net["torch_setting"]:
            if "ms" not in net:
                lines.append([shape, dtype, "losses disagree: no time", *[DASH] * 6])
                continue
            ours, torchs = (net["ms"][f"{who} {dtype}"]["p50"] for who in ("ours", "torch"))
            speeds = (found(f"chars_per_s.{who} {dtype}", "{:,.0f}".format)(net) for who in TRAINED)
            times = (torchs / ours, net["ms"]["torch float32"]["p50"] / ours)
            lines.append([shape, dtype, number(ours), number(torchs), *speeds, *(f"{t:.2f}" for t in times)])
    return markdown(heads, lines)


def train_short(trained: Mapping[str, Record]) -> str:
    """Characters a second alone."""
    lines = []
    for name, net in trained.items():
        for dtype in net["torch_setting"]:
            speeds = (found(f"chars_per_s.{who} {dtype}", "{:,.0f}".format) for who in TRAINED)
            lines.append([name, dtype, *(cell(net) for cell in speeds)])
    return markdown(["net", "dtype", *(f"{TITLES[who]} chars/s" for who in TRAINED)], lines)


def train_words(net: Record) -> str:
    """What the loss curves have in common, and what the transformer is."""
    settings = ", ".join(f"{s['taken']} in {dtype}" for dtype, s in net["torch_setting"].items())
    apart = "; ".join(
        f"in {dtype} the loss of ours stays within {a['largest_difference']:.2%} of torch's in float32"
        for dtype, a in net["agreement"].items()
    )
    words = f"torch runs in its faster setting: {settings}. Over {net['steps']} steps {apart}."
    if "auto" in net:
        words += f" `auto` takes {', '.join(f'{name} in {dtype}' for dtype, name in net['auto'].items())}."
    if "gpt" in net:
        gpt = net["gpt"]
        words += (
            f" The transformer ({gpt['layers']} layers of width {gpt['width']}, {gpt['parameters']:,} "
            f"parameters against the LSTM's {net['parameters']:,}) is another model and takes no part in the "
            "check of losses: it stands there to tell what a step of that size costs."
        )
    return words


WRITERS = ("generate float32", "generate bfloat16", "generate int8")


def sample(sampled: Mapping[str, Record], where: str) -> str:
    """Characters a second of those that write, and how many times the faster torch ours are."""
    speed = "{:,.0f}".format
    columns: list[Column] = [
        *((size, found(size)) for size in ("H", "L", "V", "B")),
        *((f"{name} chars/s", found(f"chars_per_s.{name}", speed)) for name in WRITERS),
        *(
            (f"{title(name, where)} chars/s", found(f"chars_per_s.{name}", speed))
            for name in ("ours", "torch", "torch_plain", "numpy")
        ),
        *((f"faster nn.LSTM / {name}", found(f"ratios.{name}", "{:.2f}".format)) for name in WRITERS),
        ("faster nn.LSTM / ours", ratio),
    ]
    return table(sampled.values(), columns)


def sample_short(sampled: Mapping[str, Record], where: str) -> str:
    """Characters a second alone."""
    names = (*WRITERS, "torch", "torch_plain")
    columns: list[Column] = [
        ("net", lambda net: f"{net['L']}x{net['H']}"),
        ("streams", found("B")),
        *((title(name, where), found(f"chars_per_s.{name}", "{:,.0f}".format)) for name in names),
    ]
    return table(sampled.values(), columns)


def precision(costs: Mapping[str, Record]) -> str:
    """What fewer bits do to the loss of a trained model."""
    return "\n\n".join(
        f"A trained {name} loses {nats['float32']:.5f} nats a character with its weights in float32, "
        f"{nats['bfloat16']:.5f} in bfloat16 and {nats['int8']:.5f} in int8."
        for name, nats in ((name, cost["nats"]) for name, cost in costs.items())
    )


def instructions(counted: Mapping[str, Record]) -> str:
    """What callgrind counted."""
    head = ["pass", "shape", "instruction set", "instructions a pass", "a FLOP"]
    return markdown(
        head,
        (
            [name, c["shape"], c["isa"], f"{c['per_pass']:,}", f"{c['per_flop']:.4f}"]
            for name, c in counted.items()
        ),
    )


def busy(rows: Mapping[str, Record]) -> str:
    """Times beside another busy process."""
    columns: list[Column] = [NAME]
    for who in ("ours", "torch"):
        columns += [
            (f"{TITLES[who]} alone ms", found(f"alone_ms.{who}.p50", number)),
            ("beside", found(f"busy_ms.{who}.p50", number)),
            ("slowdown", found(f"slowdown.{who}", "{:.2f}".format)),
        ]
    return table(rows.values(), columns)


def micro(measured: Mapping[str, Record]) -> str:
    """Micro-benchmarks of the hardware: every figure of each."""
    return markdown(["what", "figures"], ([name, _figures(values)] for name, values in measured.items()))


def checks(record: Record) -> str:
    """How the tests that ran on the machine ended, and what the sanitizer found."""
    counts = record.get("tests", {}).get("counts", {})
    lines = [f"- tests: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())}"] if counts else []
    for tool, found in record.get("sanitizer", {}).items():
        lines.append(f"- compute-sanitizer {tool}: {found.get('why') or 'clean'}")
    return "\n".join(lines)


def short(where: str) -> list[Column]:
    """The few columns of the README."""
    return [
        ("net", lambda row: f"{row['L']}x{row['H']}"), ("B, T", lambda row: f"{row['B']}, {row['T']}"),
        ("dtype", found("dtype")), ("mode", mode), ("ours ms", found("ms.ours.p50", number)),
        ("nn.LSTM ms", found("ms.torch.p50", number)),
        (f"{PLAIN[where]} ms", found("ms.torch_plain.p50", number)),
        ("faster nn.LSTM / ours", ratio),
    ]  # fmt: skip


def has(rows: Mapping[str, Record], field: str) -> bool:
    """Whether any row was measured for it."""
    return any(field in row for row in rows.values())


def saves(rows: Mapping[str, Record]) -> list[Record]:
    """The rows that tell of memory: all but those which were measured in haste, or save nothing."""
    return [r for r in rows.values() if "peak_bytes" in r or (r["mode"] != INFER and "ms" in r)]


def _figures(values: Record) -> str:
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    shown = {k: f"{v:,}" if isinstance(v, int) else number(v) for k, v in numbers.items()}
    return ", ".join(f"{k} {v}" for k, v in shown.items()) or DASH


def _mean(ratios: list[float]) -> list[str]:
    return [str(len(ratios)), f"{geometric_mean(ratios):.2f}"]


def _some(names: list[str], all_rows: int) -> str:
    if len(names) == all_rows:
        return "all rows"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
