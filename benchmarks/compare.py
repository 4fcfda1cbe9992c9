"""Two records, row by row: how many times faster the second is."""

from __future__ import annotations

from pathlib import Path

import tyro

from benchmarks.results import Record, load


def medians(record: Record) -> dict[str, float]:
    """Median ms by "part/row/contender"."""
    return {
        f"{part}/{row}/{name}": times["p50"]
        for part in ("layer", "train")
        for row, found in record.get(part, {}).items()
        for name, times in found.get("ms", {}).items()
    }


def table(before: Record, after: Record) -> str:
    """What both records have, a line each; then what only one of them has."""
    a, b = medians(before), medians(after)
    differ = [k for k, value in before["machine"].items() if value != after["machine"].get(k)]
    lines = [f"{k}: {before['machine'][k]} -> {after['machine'].get(k)}" for k in differ]
    lines += [
        f"{k:50} {a[k]:10.3f} -> {b[k]:10.3f} ms  {a[k] / b[k]:6.2f} times as fast" for k in a if k in b
    ]
    lines += [f"{k}: only in the {which}" for k, which in _only(a, b, "first") + _only(b, a, "second")]
    return "\n".join(lines)


def main(before: tyro.conf.Positional[Path], after: tyro.conf.Positional[Path]) -> None:
    """Compares the medians of two records.

    Args:
        before: a record, A.json.
        after: another one, B.json.
    """
    print(table(load(before), load(after)))


def _only(these: dict[str, float], others: dict[str, float], which: str) -> list[tuple[str, str]]:
    return [(k, which) for k in these if k not in others]


if __name__ == "__main__":
    tyro.cli(main)
