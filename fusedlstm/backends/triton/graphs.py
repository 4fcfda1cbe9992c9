"""The launches of the "step" regime: blocks of LAUNCHES of them replay one CUDA graph, the rest are plain.

A graph belongs to a stream and to what its kernels are compiled for, not to a length, a batch or tensors:
those it reads from its table (graph_kernels.py), which every call writes anew in the order of the stream.
So a graph holds no memory but its table, no length captures again, and no replay overwrites what a call gave.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import triton.language as tl
from torch import Tensor

from . import graph_kernels

LAUNCHES = 16  # of a graph
MOST = 64  # graphs that are kept; the one that was not used for longest goes first
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Graph:
    table: Tensor
    graph: torch.cuda.CUDAGraph


_graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
# A table must be replayed before it is written for another call of its stream.
_lock = threading.Lock()


def capturable(device: torch.device) -> bool:
    """Whether it is a GPU, and nobody captures what runs on its current stream."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def launch(
    kernel: Any, graph_kernel: Any, grid: tuple[int, int, int], steps: Sequence[int],
    tensors: Mapping[str, Tensor], sizes: Mapping[str, int], constants: Mapping[str, Any],
) -> None:  # fmt: skip
    """Launches the kernel of a step for every step.

    Args:
        kernel: of kernels.py. graph_kernel: the same one in graph_kernels.py.
        grid: programs in x, y and z.
        steps: in the order in which they are launched.
        tensors: by the names of the kernel's arguments.
        sizes: T, B, N, H and gx_stride, those that the kernel has.
        constants: all that it is compiled for beside H.
    """
    blocks = len(steps) // LAUNCHES
    if (
        blocks
        and capturable(tensors["w_ptr"].device)
        and all(t.data_ptr() % 16 == 0 for t in tensors.values())
    ):
        ordered = [tensors[name] for name in kernel.arg_names if name in tensors]
        dtype = getattr(tl, str(tensors["w_ptr"].dtype).removeprefix("torch."))
        _replay(graph_kernel, grid, blocks, ordered, sizes, {"DTYPE": dtype, "H": sizes["H"], **constants})
        steps = steps[blocks * LAUNCHES :]
    for s in steps:
        kernel[grid](**tensors, s=s, **sizes, **constants)


def _replay(
    kernel: Any, grid: tuple[int, int, int], blocks: int, tensors: list[Tensor], sizes: Mapping[str, int],
    constants: Mapping[str, Any],
) -> None:  # fmt: skip
    """Makes the first launches of a call, as many as the blocks have."""
    device = tensors[0].device
    stream = torch.cuda.current_stream(device)
    key = (device, stream.cuda_stream, kernel, grid, *constants.items())

    def block() -> None:
        for k in range(LAUNCHES):
            kernel[grid](table_ptr=table, k=k, **constants)
        graph_kernels.advance_kernel[(1,)](table_ptr=table, LAUNCHES=LAUNCHES)

    with _lock:
        found = _graphs.get(key)
        table = _apart(lambda: _table(stream)) if found is None else found.table
        pointers = {f"p{n}_ptr": tensors[min(n, len(tensors) - 1)] for n in range(graph_kernels.POINTERS)}
        graph_kernels.aim_kernel[(1,)](
            table_ptr=table, **pointers, **{name: sizes[name] for name in ("T", "B", "N")},
            gx_rows=sizes.get("gx_stride", 0) // (4 * sizes["H"]),
        )  # fmt: skip
        if found is None:
            block()  # compiles and loads, which a capture may not
            found = _Graph(table, _apart(lambda: _capture(block, device)))
            _keep(key, found, device)
            blocks -= 1
        for _ in range(blocks):
            found.graph.replay()
        _graphs.move_to_end(key)


def _keep(key: Hashable, graph: _Graph, device: torch.device) -> None:
    _graphs[key] = graph
    if len(_graphs) > MOST:
        torch.cuda.synchronize(device)  # it may still run
        _graphs.popitem(last=False)


def _table(stream: torch.cuda.Stream) -> Tensor:
    with torch.cuda.stream(stream):
        return torch.zeros(graph_kernels.TABLE, dtype=torch.int64, device=stream.device)


def _capture(launches: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    # torch hands out its streams by turns: one of high priority is least likely to be somebody else's too.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device, priority=-1)):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launches()
        finally:
            graph.capture_end()
    return graph


def _apart(function: Callable[[], _Result]) -> _Result:
    """Calls it in a thread of its own.

    What outlives a call takes no part in the caller's inference mode, nor in a memory pool that torch.compile
    has lent to the caller's thread.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
