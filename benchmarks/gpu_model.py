"""The terms of the step-time model on a GPU: what was predicted before any card, and what measures it.

A step of a recurrence whose weights stay put is a sum: the products, a hop or a barrier that brings h to
everybody, and the cells. docs/kernels.md shows these terms beside what the micro-benchmarks found.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One constant of the model.

    Args:
        what: it is, in words.
        figure: the micro-benchmark that measures it.
        low, high: the prediction, at a data sheet's clock.
        field: of the figure: "us", or a rate such as "macs_per_clock".
    """

    what: str
    figure: str
    low: float
    high: float
    field: str = "us"

    @property
    def unit(self) -> str:
        return {"us": "µs"}.get(self.field, self.field.replace("_", " "))

    @property
    def predicted(self) -> str:
        both = (f"{self.low:g}", f"{self.high:g}")
        return both[0] if both[0] == both[1] else " to ".join(both)


def _exactly(what: str, figure: str, value: float, field: str = "us") -> Term:
    return Term(what, figure, value, value, field)


# Of the kernels in CUDA C++: published micro-benchmarks of an H100 and its data sheet.
TERMS = (
    _exactly("hop between two blocks of a cluster, st.async", "dsmem_hop_st_async_16", 0.10),
    Term("dependent load from L2", "l2_load", 0.15, 0.24),
    Term("hop through L2: a write and a load", "l2_hop_flag", 0.30, 0.48),
    _exactly("mma.sync, weights in registers, h from shared memory", "mma_ldmatrix_8_warps_32_columns", 1290,
             "macs_per_clock"),
)  # fmt: skip


def triton_terms() -> tuple[Term, ...]:
    """The constants by which the Triton backend plans."""
    from fusedlstm.backends.triton import plans

    return (
        _exactly("barrier of a grid as the Triton kernels have it", "triton_barrier_full", plans.BARRIER_US),
        _exactly("reading h from L2, all multiprocessors together", "l2_read_32k", plans.L2_BYTES_PER_CLOCK,
                 "bytes_per_clock"),
        _exactly("mma.sync, one operand from shared memory", "mma_ldmatrix_8_warps_16_columns",
                 plans.MACS_PER_CLOCK["half"], "macs_per_clock"),
        _exactly("a step's launch in a graph, its cells included; measured without", "launch_graph_128",
                 plans.LAUNCH_US),
    )  # fmt: skip


# Whole steps, in words until kernels are measured: shape, kernel and its sum.
STEPS = (
    ("H=512, one cluster of 16 blocks", "0.23 products + 0.10 hop + cells", "0.5 to 0.8"),
    ("a grid over all multiprocessors", "products + barrier through L2 + cells", "1.1 to 1.5"),
)
