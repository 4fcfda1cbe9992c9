"""One layer on a GPU: the products over all steps, which are torch's, around a recurrence by a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import accumulation

_ROWS_AT_ONCE = 1 << 14  # of gates that are made again, so that what is wide of them stays small


@dataclass(frozen=True)
class Steps:
    """How rows belong to steps.

    Args:
        T: steps. B: sequences. N: rows. H: hidden units. D: directions.
        offsets: first row of every step and the end [T + 1], on the device; None when all steps have B rows.
        fresh: the states before this row's step are zero [D, N]; None when they never are.
    """

    T: int
    B: int
    N: int
    H: int
    D: int
    offsets: Tensor | None
    fresh: Tensor | None


@dataclass(frozen=True)
class Forward:
    """What a forward recurrence reads and writes.

    Args:
        steps: sizes and rows.
        gx: x W_ih^T [D, N, 4H], where the gates go; or W_ih^T [D, I, 4H] of which ids name the rows.
        ids: int64 [N], or None.
        bias: sum of both [D, 4H] in float32, or None.
        w_hh: [D, 4H, H]. h0, c0: [D, B, H].
        y: [N, D*H], h_n, c_n: [D, B, H], to be written.
        c: [D, N, H] and gates [D, N, 4H], to be written; None when nothing is saved.
    """

    steps: Steps
    gx: Tensor
    ids: Tensor | None
    bias: Tensor | None
    w_hh: Tensor
    h0: Tensor
    c0: Tensor
    y: Tensor
    h_n: Tensor
    c_n: Tensor
    c: Tensor | None
    gates: Tensor | None


@dataclass(frozen=True)
class Backward:
    """What a backward recurrence reads and writes.

    Args:
        steps: sizes and rows.
        dy: [N, D*H], dh_n, dc_n: [D, B, H]; None stands for zeros.
        c0: [D, B, H]. w_hh: [D, 4H, H]. c: [D, N, H]. gates: [D, N, 4H].
        dgates: [D, N, 4H], dh0, dc0: [D, B, H], to be written.
    """

    steps: Steps
    dy: Tensor | None
    dh_n: Tensor | None
    dc_n: Tensor | None
    c0: Tensor
    w_hh: Tensor
    c: Tensor
    gates: Tensor
    dgates: Tensor
    dh0: Tensor
    dc0: Tensor


def forward(
    recurrence: Callable[[Forward], None], x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor,
    weights: Sequence[Tensor], save: bool, fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs one layer; arguments and results as backends.eager.layer_forward."""
    (D, _, H), N = h0.shape, x.shape[0]
    y, h_n, c_n = h0.new_empty(N, D * H), torch.empty_like(h0), torch.empty_like(c0)
    c = h0.new_empty((D, N, H) if save else 0, dtype=accumulation(h0.dtype))
    if N == 0:
        return y, h_n.copy_(h0), c_n.copy_(c0), c, h0.new_empty((D, 0, 4 * H) if save else 0)
    ids = not x.is_floating_point()
    w_ih, w_hh, bias = _weights(weights, D)
    gates = h0.new_empty((D, N, 4 * H) if save or not ids else 0)
    if not ids:
        for d in range(D):
            torch.mm(x, w_ih[d].t(), out=gates[d])
    recurrence(
        Forward(
            _steps(batch_sizes, N, h0, fresh),
            w_ih.transpose(1, 2).contiguous() if ids else gates, x if ids else None,
            bias, w_hh, h0, c0, y, h_n, c_n, c if save else None, gates if save else None,
        )
    )  # fmt: skip
    return y, h_n, c_n, c, gates if save else gates.new_empty(0)


def backward(
    recurrence: Callable[[Backward], None], dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None,
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], y: Tensor,
    c: Tensor, gates: Tensor, needs_dx: bool, needs_dw: bool, fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Gradients of one layer; arguments and results as backends.eager.layer_backward."""
    (D, _, H), N = h0.shape, x.shape[0]
    if N == 0:
        dh0, dc0 = (torch.zeros_like(h) if dh is None else dh.clone() for h, dh in ((h0, dh_n), (c0, dc_n)))
        return torch.zeros_like(x), dh0, dc0, [w.new_zeros(w.shape if needs_dw else 0) for w in weights]
    w_ih, w_hh, bias = _weights(weights, D)
    dgates, dh0, dc0 = torch.empty_like(gates), torch.empty_like(h0), torch.empty_like(c0)
    steps = _steps(batch_sizes, N, h0, fresh)
    recurrence(Backward(steps, dy, dh_n, dc_n, c0, w_hh, c, gates, dgates, dh0, dc0))
    dx = h0.new_empty(0)
    if needs_dx and x.is_floating_point():
        dx = dgates[0] @ w_ih[0]
        for d in range(1, D):
            dx.addmm_(dgates[d], w_ih[d])
    if not needs_dw:
        return dx, dh0, dc0, [h0.new_empty(0) for _ in weights]
    dweights: list[Tensor] = []
    for d in range(D):
        h_prev = _masked(_previous(y[:, d * H : (d + 1) * H], batch_sizes, h0[d], reverse=d == 1), fresh, d)
        dweights.append(_input_weight_gradient(dgates[d], x, w_ih.shape[2]))
        dweights.append(dgates[d].t() @ h_prev)
        if bias is not None:
            db = dgates[d].sum(0, dtype=torch.float32).to(h0.dtype)
            dweights += [db, db.clone()]
    return dx, dh0, dc0, dweights


def recomputed_gates(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, weights: Sequence[Tensor], y: Tensor,
    fresh: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The activated gates [D, N, 4H] once more, from y: all steps at once, since every h is known.

    Args:
        x, batch_sizes, h0, weights, fresh: as of backends.eager.layer_forward, on any device.
        y: what it returned [N, D*P].
    """
    D, _, P = h0.shape
    w_ih, w_hh, bias = _weights(weights, D)
    H4, wide = w_hh.shape[1], accumulation(h0.dtype)
    gates = h0.new_empty(D, len(y), H4)
    for d in range(D):
        h_prev = _masked(_previous(y[:, d * P : (d + 1) * P], batch_sizes, h0[d], reverse=d == 1), fresh, d)
        for first in range(0, len(y), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            gx = x[part] @ w_ih[d].t() if x.is_floating_point() else w_ih[d].t()[x[part]]
            sums = torch.addmm(gx, h_prev[part], w_hh[d].t()).to(wide)
            if bias is not None:
                sums += bias[d]
            i, f, g, o = sums.chunk(4, 1)
            gates[d, part] = torch.cat((i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()), 1).to(h0.dtype)
    return gates


def _steps(batch_sizes: Tensor | None, N: int, h0: Tensor, fresh: Tensor | None) -> Steps:
    D, B, H = h0.shape
    if batch_sizes is None:
        return Steps(N // B, B, N, H, D, None, fresh)
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    return Steps(len(batch_sizes), B, N, H, D, offsets.to(h0.device, non_blocking=True), fresh)


def _weights(weights: Sequence[Tensor], D: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """w_ih [D, 4H, I], w_hh [D, 4H, P] and the sum of both biases [D, 4H], which is wide, or None."""
    count = len(weights) // D
    # One direction's weights are only viewed, not copied.
    w_ih, w_hh = (
        weights[k][None] if D == 1 else torch.stack([weights[k], weights[count + k]]) for k in (0, 1)
    )
    if count == 2 or weights[2].dim() == 2:
        return w_ih, w_hh, None
    wide = accumulation(weights[0].dtype)
    pairs = [weights[d * count + 2 : d * count + 4] for d in range(D)]
    return w_ih, w_hh, torch.stack([b_ih.to(wide) + b_hh.to(wide) for b_ih, b_hh in pairs])


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


def _masked(h_prev: Tensor, fresh: Tensor | None, d: int) -> Tensor:
    return h_prev if fresh is None else h_prev.masked_fill_(fresh[d, :, None], 0)


def _input_weight_gradient(dgates: Tensor, x: Tensor, I: int) -> Tensor:  # noqa: E741
    if x.is_floating_point():
        return dgates.t() @ x
    if dgates.shape[1] >= I:
        return dgates.t() @ torch.nn.functional.one_hot(x, I).to(dgates.dtype)
    # In float32, since torch adds in the dtype that it is given; sorted, not by atomics.
    wide = torch.ops.aten.embedding_dense_backward(dgates.float(), x, I, -1, False)
    return wide.t().to(dgates.dtype)
