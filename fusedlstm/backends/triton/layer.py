"""One layer: its products over all steps by torch, its recurrence by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import accumulation
from . import graph_kernels, graphs, kernels
from .plans import Plan


def forward(
    plan: Plan, precision: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor,
    weights: Sequence[Tensor], save: bool, fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs one layer as planned; arguments and results as backends.eager.layer_forward."""
    (D, B, H), N = h0.shape, x.shape[0]
    ids = not x.is_floating_point()
    w_ih, w_hh, bias = _weights(weights, D)
    gates = h0.new_empty((D, N, 4 * H) if save or not ids else 0)
    if ids:
        gx = w_ih.transpose(1, 2).contiguous()
    else:
        gx = gates
        for d in range(D):
            torch.mm(x, w_ih[d].t(), out=gates[d])
    y = h0.new_empty(N, D * H)
    c = h0.new_empty((D, N, H) if save else 0, dtype=accumulation(h0.dtype))
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    hx = h0.new_empty(2, D, B, H)
    hx[0] = h0
    offsets, T = _offsets(batch_sizes, N, B, x.device)
    sizes = {"T": T, "B": B, "N": N, "gx_stride": gx.stride(0), "H": H}
    flags = {
        "IDS": ids,
        "BIAS": bias is not None,
        "PACKED": batch_sizes is not None,
        "FRESH": fresh is not None,
        "SAVE": save,
        "PRECISION": precision,
    }
    source = {"gx_ptr": gx, "ids_ptr": x if ids else offsets, "bias_ptr": w_hh if bias is None else bias}
    saved = {
        "offsets_ptr": offsets, "fresh_ptr": _bytes(fresh, offsets),
        "y_ptr": y, "c_ptr": c, "gates_ptr": gates,
    }  # fmt: skip
    if plan.regime == "step":
        cx = c0.to(accumulation(c0.dtype), copy=True)
        graphs.launch(
            kernels.lstm_fwd_step_kernel, graph_kernels.lstm_fwd_graph_kernel, _grid(plan, B, H, D), range(T),
            {**source, "w_ptr": w_hh, "hx_ptr": hx, "cx_ptr": cx, **saved}, sizes, flags | plan.options(),
        )  # fmt: skip
        return y, h_n.copy_(hx[T % 2]), c_n.copy_(cx), c, gates if save else gates.new_empty(0)
    kernels.lstm_fwd_kernel[_grid(plan, B, H, D)](
        **source, w_ptr=w_hh, hx_ptr=hx, c0_ptr=c0, h_n_ptr=h_n, c_n_ptr=c_n, **saved, **sizes, **flags,
        **_persistent(plan, B, H, D, x.device),
    )  # fmt: skip
    return y, h_n, c_n, c, gates if save else gates.new_empty(0)


def backward(
    plan: Plan, precision: str, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, x: Tensor,
    batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], y: Tensor, c: Tensor,
    gates: Tensor, needs_dx: bool, needs_dw: bool, fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Gradients of one layer as planned; arguments and results as backends.eager.layer_backward."""
    (D, B, H), N = h0.shape, x.shape[0]
    w_ih, w_hh, bias = _weights(weights, D)
    dh_n = torch.zeros_like(h0) if dh_n is None else dh_n
    dc_n = torch.zeros_like(c0) if dc_n is None else dc_n
    dgates = torch.empty_like(gates)
    offsets, T = _offsets(batch_sizes, N, B, x.device)
    flags = {
        "PACKED": batch_sizes is not None, "FRESH": fresh is not None, "DY": dy is not None,
        "PRECISION": precision,
    }  # fmt: skip
    sizes = {"T": T, "B": B, "N": N, "H": H}
    given = {
        "dy_ptr": gates if dy is None else dy, "gates_ptr": gates, "c_ptr": c, "c0_ptr": c0, "w_ptr": w_hh,
        "offsets_ptr": offsets, "fresh_ptr": _bytes(fresh, offsets), "dgates_ptr": dgates,
    }  # fmt: skip
    if plan.regime == "step":
        dh, dc = (t.to(accumulation(t.dtype), copy=True) for t in (dh_n, dc_n))
        graphs.launch(
            kernels.lstm_bwd_step_kernel, graph_kernels.lstm_bwd_graph_kernel, _grid(plan, B, H, D),
            range(T - 1, -2, -1), {"dhx_ptr": dh, "dcx_ptr": dc, **given}, sizes, flags | plan.options(),
        )  # fmt: skip
        dh0, dc0 = dh.to(h0.dtype), dc.to(c0.dtype)
    else:
        dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0)
        partial = h0.new_empty((2, plan.SLICES, *h0.shape) if plan.SLICES > 1 else 1, dtype=torch.float32)
        kernels.lstm_bwd_kernel[_grid(plan, B, H, D)](
            **given, dh_ptr=dh_n, dc_ptr=dc_n, partial_ptr=partial, dh0_ptr=dh0, dc0_ptr=dc0, **sizes,
            **flags, **_persistent(plan, B, H, D, x.device),
        )  # fmt: skip
    dx = h0.new_empty(0)
    if needs_dx and x.is_floating_point():
        dx = dgates[0] @ w_ih[0]
        for d in range(1, D):
            dx.addmm_(dgates[d], w_ih[d])
    if not needs_dw:
        return dx, dh0, dc0, [h0.new_empty(0) for _ in weights]
    dweights: list[Tensor] = []
    for d in range(D):
        dweights.append(_input_weight_gradient(dgates[d], x, w_ih.shape[2]))
        h_prev = _previous(y[:, d * H : (d + 1) * H], batch_sizes, h0[d], reverse=d == 1)
        if fresh is not None:
            h_prev.masked_fill_(fresh[d, :, None], 0)
        dweights.append(dgates[d].t() @ h_prev)
        if bias is not None:
            db = dgates[d].sum(0, dtype=torch.float32).to(h0.dtype)
            dweights += [db, db.clone()]
    return dx, dh0, dc0, dweights


def _weights(weights: Sequence[Tensor], D: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """w_ih [D, 4H, I], w_hh [D, 4H, H] and the sum of both biases [D, 4H] in float32, or None."""
    count = len(weights) // D
    # One direction's weights are only viewed, not copied.
    w_ih, w_hh = (
        weights[k][None] if D == 1 else torch.stack([weights[k], weights[count + k]]) for k in (0, 1)
    )
    if count == 2:
        return w_ih, w_hh, None
    bias = torch.stack([weights[d * count + 2].float() + weights[d * count + 3].float() for d in range(D)])
    return w_ih, w_hh, bias


def _offsets(batch_sizes: Tensor | None, N: int, B: int, device: torch.device) -> tuple[Tensor, int]:
    """First row of every step and the end [T + 1] on the device, and T; when all have B rows, any tensor."""
    if batch_sizes is None:
        return torch.empty(1, dtype=torch.int64, device=device), N // B
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    return offsets.to(device, non_blocking=True), len(batch_sizes)


def _bytes(fresh: Tensor | None, unused: Tensor) -> Tensor:
    """Masks as a kernel reads them; any tensor where there are none."""
    return unused if fresh is None else fresh.view(torch.uint8)


def _grid(plan: Plan, B: int, H: int, D: int) -> tuple[int, int, int]:
    return triton.cdiv(H, plan.BLOCK_H), triton.cdiv(B, plan.BLOCK_B), D


def _persistent(plan: Plan, B: int, H: int, D: int, device: torch.device) -> dict[str, Any]:
    return {
        "barrier_ptr": torch.zeros(triton.cdiv(B, plan.BLOCK_B) * D, dtype=torch.int32, device=device),
        "SLICES": plan.SLICES,
        "CHUNKS": triton.cdiv(H, plan.BLOCK_K),
        # The driver then refuses a launch whose programs are not all on the card at once.
        "launch_cooperative_grid": plan.SLICES > 1,
        **plan.options(),
    }


def _previous(y: Tensor, batch_sizes: Tensor | None, h0: Tensor, reverse: bool) -> Tensor:
    """h before each row's step [N, H], from h after it [N, H] and the first ones [B, H]."""
    N, B = len(y), len(h0)
    if batch_sizes is None:
        return torch.cat((y[B:], h0) if reverse else (h0, y[: N - B]))
    T = len(batch_sizes)
    t = torch.repeat_interleave(torch.arange(T), batch_sizes)
    start = batch_sizes.cumsum(0) - batch_sizes
    b = torch.arange(N) - start[t]
    before = t + 1 if reverse else t - 1
    there = (before >= 0) & (before < T)
    before = before.clamp(0, T - 1)
    row = torch.where(there & (b < batch_sizes[before]), start[before] + b, N + b)
    return torch.cat((y, h0)).index_select(0, row.to(y.device, non_blocking=True))


def _input_weight_gradient(dgates: Tensor, x: Tensor, I: int) -> Tensor:  # noqa: E741
    if x.is_floating_point():
        return dgates.t() @ x
    if dgates.shape[1] >= I:
        return dgates.t() @ torch.nn.functional.one_hot(x, I).to(dgates.dtype)
    # In float32, since torch adds in the dtype that it is given; sorted, not by atomics.
    wide = torch.ops.aten.embedding_dense_backward(dgates.float(), x, I, -1, False)
    return wide.t().to(dgates.dtype)
