"""The recurrence of one layer, launched as planned."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .. import accumulation, products
from . import graph_kernels, graphs, kernels
from .plans import Plan


def forward(plan: Plan, precision: str, call: products.Forward) -> None:
    """Computes y, h_n and c_n, and c and gates where they are wanted."""
    steps = call.steps
    given = {
        "gx_ptr": call.gx, "ids_ptr": _or_any(call.ids, call.gx), "bias_ptr": _or_any(call.bias, call.gx),
        "w_ptr": call.w_hh, **_rows(steps, call.gx), "y_ptr": call.y,
        # Of the dtype that they would have, since a kernel is compiled for it.
        "c_ptr": call.h0.new_empty(0, dtype=accumulation(call.h0.dtype)) if call.c is None else call.c,
        "gates_ptr": _or_any(call.gates, call.gx),
    }  # fmt: skip
    flags = {
        "IDS": call.ids is not None, "BIAS": call.bias is not None, "PACKED": steps.offsets is not None,
        "FRESH": steps.fresh is not None, "SAVE": call.c is not None, "PRECISION": precision,
    }  # fmt: skip
    sizes = {"T": steps.T, "B": steps.B, "N": steps.N, "gx_stride": call.gx.stride(0), "H": steps.H}
    hx = call.h0.new_empty(2, *call.h0.shape)
    hx[0] = call.h0
    if plan.regime == "step":
        cx = call.c0.to(accumulation(call.c0.dtype), copy=True)
        graphs.launch(
            kernels.lstm_fwd_step_kernel, graph_kernels.lstm_fwd_graph_kernel, _grid(plan, steps),
            range(steps.T), {**given, "hx_ptr": hx, "cx_ptr": cx}, sizes, flags | plan.options(),
        )  # fmt: skip
        call.h_n.copy_(hx[steps.T % 2])
        call.c_n.copy_(cx)
        return
    kernels.lstm_fwd_kernel[_grid(plan, steps)](
        **given, hx_ptr=hx, c0_ptr=call.c0, h_n_ptr=call.h_n, c_n_ptr=call.c_n, **sizes, **flags,
        **_persistent(plan, steps, call.h0.device),
    )  # fmt: skip


def backward(plan: Plan, precision: str, call: products.Backward) -> None:
    """Computes dgates, dh0 and dc0."""
    steps = call.steps
    dh, dc = (torch.zeros_like(call.c0) if d is None else d for d in (call.dh_n, call.dc_n))
    given = {
        "dy_ptr": _or_any(call.dy, call.gates), "gates_ptr": call.gates, "c_ptr": call.c, "c0_ptr": call.c0,
        "w_ptr": call.w_hh, **_rows(steps, call.gates), "dgates_ptr": call.dgates,
    }  # fmt: skip
    flags = {
        "PACKED": steps.offsets is not None, "FRESH": steps.fresh is not None, "DY": call.dy is not None,
        "PRECISION": precision,
    }  # fmt: skip
    sizes = {"T": steps.T, "B": steps.B, "N": steps.N, "H": steps.H}
    if plan.regime == "step":
        dhx, dcx = (t.to(accumulation(t.dtype), copy=True) for t in (dh, dc))
        graphs.launch(
            kernels.lstm_bwd_step_kernel, graph_kernels.lstm_bwd_graph_kernel, _grid(plan, steps),
            range(steps.T - 1, -2, -1), {"dhx_ptr": dhx, "dcx_ptr": dcx, **given}, sizes,
            flags | plan.options(),
        )  # fmt: skip
        call.dh0.copy_(dhx)
        call.dc0.copy_(dcx)
        return
    shape = (2, plan.SLICES, *call.c0.shape) if plan.SLICES > 1 else (1,)
    partial = call.c0.new_empty(shape, dtype=torch.float32)
    kernels.lstm_bwd_kernel[_grid(plan, steps)](
        **given, dh_ptr=dh, dc_ptr=dc, partial_ptr=partial, dh0_ptr=call.dh0, dc0_ptr=call.dc0, **sizes,
        **flags, **_persistent(plan, steps, call.c0.device),
    )  # fmt: skip


def _rows(steps: products.Steps, unused: Tensor) -> dict[str, Tensor]:
    """Where rows lie, and masks as a kernel reads them; any tensor where there are none."""
    fresh = None if steps.fresh is None else steps.fresh.view(torch.uint8)
    return {"offsets_ptr": _or_any(steps.offsets, unused), "fresh_ptr": _or_any(fresh, unused)}


def _or_any(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A kernel's argument that it does not read where there is none."""
    return unused if tensor is None else tensor


def _grid(plan: Plan, steps: products.Steps) -> tuple[int, int, int]:
    return triton.cdiv(steps.H, plan.BLOCK_H), triton.cdiv(steps.B, plan.BLOCK_B), steps.D


def _persistent(plan: Plan, steps: products.Steps, device: torch.device) -> dict[str, Any]:
    tiles = triton.cdiv(steps.B, plan.BLOCK_B) * steps.D
    return {
        "barrier_ptr": torch.zeros(tiles, dtype=torch.int32, device=device),
        "SLICES": plan.SLICES,
        "CHUNKS": triton.cdiv(steps.H, plan.BLOCK_K),
        # The driver then refuses a launch whose programs are not all on the card at once.
        "launch_cooperative_grid": plan.SLICES > 1,
        **plan.options(),
    }
