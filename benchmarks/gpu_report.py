"""The step-time model in docs/kernels.md: predicted beside measured, from the record of a card.

A record that `make gpu` left is filed with the others first: `python -m benchmarks.gpu_report gpu.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.gpu_model import STEPS, TERMS, Term, triton_terms
from benchmarks.report import filled, newest, where
from benchmarks.results import ROOT, Record, load, path_for
from benchmarks.tables import markdown
from benchmarks.titles import number

PAGE = ROOT / "docs" / "kernels.md"
NOT_MEASURED = "not measured"
# Each barrier by how many blocks take part.
BARRIERS = {
    "cluster, whole": "cluster_barrier_{}",
    "cluster, memory not ordered": "cluster_barrier_relaxed_{}",
    "cluster, what other work does not hide": "cluster_barrier_split_{}",
    "cluster, all that fit at once": "cluster_barrier_full_{}",
    "grid, a counter": "grid_barrier_counter_{}",
    "grid, a flag of each block": "grid_barrier_flags_{}",
    "grid, CUDA's own": "grid_barrier_cuda_{}",
    "grid, Triton": "triton_barrier_{}",
}
BLOCKS = ("2", "4", "8", "16", "32", "64", "128", "full")
DSMEM = ("st_async", "bulk", "barrier", "mbarrier", "flag")
GATHERS = {
    "hop": "dsmem_hop_{}_{}",
    "8 KB to all": "dsmem_gather_8k_{}_{}",
    "32 KB to all": "dsmem_gather_32k_{}_{}",
}


def model(record: Record | None) -> str:
    """The tables between the markers of docs/kernels.md.

    Args:
        record: of a run with micro-benchmarks; None where no card was at hand.
    """
    micro = (record or {}).get("micro", {})
    parts = [
        f"Measured on {where(record)}" if record else "No card has measured this yet.",
        markdown(
            ["term", "predicted", "measured", "unit", "micro-benchmark"],
            [_term(term, micro) for term in (*TERMS, *triton_terms())],
        ),
        "Whole steps of kernels that are to come:",
        markdown(
            ["kernel", "sum in µs", "predicted µs", "measured"], [[*step, NOT_MEASURED] for step in STEPS]
        ),
    ]
    if micro:
        parts += _figures(micro)
    return "\n\n".join(parts)


def _figures(micro: Mapping[str, Record]) -> list[str]:
    return [
        "A barrier, in µs by the blocks that take part (`full`: one on every multiprocessor):",
        _table(micro, ["barrier", *BLOCKS], {n: [f.format(b) for b in BLOCKS] for n, f in BARRIERS.items()}),
        "Distributed shared memory, in µs in a cluster of 8 and of 16 blocks:",
        _table(
            micro,
            ["way", *(f"{what}, {n}" for what in GATHERS for n in (8, 16))],
            {way: [form.format(way, n) for form in GATHERS.values() for n in (8, 16)] for way in DSMEM},
        ),
    ]


def keep(path: Path) -> Path:
    """Files a record where the records of its device are, and returns that place."""
    record = load(path)
    kept = path_for(record["machine"])
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(path.read_bytes())
    return kept


def main(record: Path | None = None, page: Path = PAGE) -> None:
    """Rewrites the page between its markers.

    Args:
        record: of a run that is to be filed; by default the newest that is and has micro-benchmarks.
        page: with markers.
    """
    filed = [keep(record)] if record else newest()
    measured = [found for found in map(load, filed) if found.get("micro")]
    page.write_text(filled(page.read_text(), model(measured[-1] if measured else None)))
    print(f"wrote {page}" + (f"; the record is {filed[0]}" if record else ""))


def _term(term: Term, micro: Mapping[str, Record]) -> list[str]:
    value = micro.get(term.figure, {}).get(term.field)
    measured = NOT_MEASURED if value is None else number(value)
    return [term.what, term.predicted, measured, term.unit, f"`{term.figure}`"]


def _table(micro: Mapping[str, Record], head: list[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A line for each row of figures, a dash where a figure is not there."""
    cells = [
        [name, *(number(micro[f]["us"]) if "us" in micro.get(f, {}) else "-" for f in figures)]
        for name, figures in rows.items()
    ]
    return markdown(head, cells)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
