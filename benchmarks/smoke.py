"""A minute's look at a few small rows: it fails when a result is wrong, and only tells how long they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks import results
from benchmarks.bench_layer import measure
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.shapes import ROWS, Row

NAMES = ("2x128", "1x512-infer", "char-rnn-one-char", "odd-33", "tagger", "encoder-forward", "2x128-bf16")


def run(rows: Sequence[Row], contenders: Mapping[str, Contender], before: results.Record) -> bool:
    """Checks and times rows, a line for each.

    Args:
        rows: what to run.
        contenders: by name, with "ours" and "torch" among them.
        before: earlier measurements of this machine, by the row's name; they need not have all rows.

    Returns:
        Whether every result was right.
    """
    right = True
    for row in rows:
        found = measure(row, contenders, quick=True)
        right = right and found["parity"]["ok"]
        print(f"{row.name:20} {line(found, before.get(row.name, {}))}", flush=True)
    return right


def line(found: results.Record, before: results.Record) -> str:
    """A row's time, against torch's and against what it took before."""
    if not found["parity"]["ok"]:
        return f"WRONG RESULT, no time: {found['parity']}"
    ms = found["ms"]["ours"]["p50"]
    text = f"right; {ms:.3f} ms, {found['ratio']:.2f} times as fast as the faster torch"
    if "ms" in before:
        text += f" (on record: {before['ms']['ours']['p50']:.3f} ms, {before['ratio']:.2f} times)"
    return text


def recorded(machine: results.Record) -> results.Record:
    """The newest measurement of each row in the records of this machine."""
    rows: results.Record = {}
    for path in results.path_for(machine).parent.glob("*.json"):
        for name, found in results.load(path).get("layer", {}).items():
            if found["date"] > rows.get(name, {}).get("date", ""):
                rows[name] = found
    return rows


def main() -> None:
    """Runs the rows; exit code 1 when a result is wrong."""
    before = recorded(results.machine())
    if not before:
        print("no record of this machine: times stand against torch's alone")
    if not run([ROWS[name] for name in NAMES], CONTENDERS, before):
        raise SystemExit("a result is wrong: see above")


if __name__ == "__main__":
    main()
