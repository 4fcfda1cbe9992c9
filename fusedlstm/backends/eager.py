"""One LSTM layer as a plain torch loop over time, forward and backward, on any device and floating dtype.

Per step t, for the rows that are alive (gate order i, f, g, o):

    [i f g o] = act(x_t W_ih^T + b_ih + b_hh + h_{t-1} W_hh^T)     act: sigmoid, sigmoid, tanh, sigmoid
    c_t = f * c_{t-1} + i * g
    h_t = (o * tanh(c_t)) W_hr^T                                   W_hr only with projection

Where fresh is true, h_{t-1} and c_{t-1} are zeros instead of the states that were. Arithmetic is float32, or
float64 for float64; what is stored has the dtype of the weights. The forward has no in-place writes, so that
autograd can differentiate through it: the double backward does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import Spec, accumulation

RESETS = True


class _Direction(NamedTuple):
    """Weights of one direction, in the dtype of the arithmetic."""

    w_ih: Tensor
    w_hh: Tensor
    bias: list[Tensor]
    w_hr: Tensor | None


def supports(spec: Spec) -> str | None:
    """None for every real floating dtype, else the reason why not."""
    return None if spec.dtype.is_floating_point else f"needs a real floating dtype, got {spec.dtype}"


def layer_forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], save: bool,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs one layer in all its directions.

    Args:
        x: input rows [N, I], or int64 ids [N].
        batch_sizes: sequences alive at each step [T], non-increasing; None when all of them always are.
        h0: first hidden state [D, B, P]. c0: first cell state [D, B, H].
        weights: per direction w_ih, w_hh, (b_ih, b_hh), (w_hr).
        save: also return what the backward needs.
        fresh: which rows start from states of zero [D, N], bool; None when none does.

    Returns:
        y [N, D*P], h_n [D, B, P], c_n [D, B, H]; c [D, N, H] and activated gates [D, N, 4H], empty unless
        save.
    """
    sizes = _sizes(x, batch_sizes, h0)
    outs = [
        _forward(x, sizes, h0[d], c0[d], direction, _fresh_steps(fresh, d, sizes), reverse=d == 1)
        for d, direction in enumerate(_directions(weights, h0, c0))
    ]
    y, h_n, c_n, c, gates = (list(column) for column in zip(*outs, strict=True))
    return (
        torch.cat(y, 1).to(h0.dtype),
        torch.stack(h_n).to(h0.dtype),
        torch.stack(c_n).to(h0.dtype),
        torch.stack(c) if save else h0.new_empty(0, dtype=accumulation(h0.dtype)),
        torch.stack(gates).to(h0.dtype) if save else h0.new_empty(0),
    )


def layer_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    c: Tensor,
    gates: Tensor,
    needs_dx: bool,
    needs_dw: bool,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of one layer from those of its outputs and what layer_forward saved.

    Args:
        dy, dh_n, dc_n: gradients of y, h_n and c_n; None stands for zeros.
        x, batch_sizes, h0, c0, weights, y, c, gates: inputs and outputs of layer_forward.
        needs_dx, needs_dw: whether those gradients are wanted.
        fresh: as layer_forward had it.

    Returns:
        dx [N, I], dh0 [D, B, P], dc0 [D, B, H] and the list of dweights; empty tensors where not wanted.
    """
    sizes, P = _sizes(x, batch_sizes, h0), h0.shape[2]
    acc = accumulation(h0.dtype)
    dx: Tensor | None = None
    dh0, dc0, dweights = [], [], []
    for d, direction in enumerate(_directions(weights, h0, c0)):
        columns, fresh_steps = slice(d * P, (d + 1) * P), _fresh_steps(fresh, d, sizes)
        dgates, dh, dc, dw_hr = _backward(
            torch.zeros_like(y[:, columns], dtype=acc) if dy is None else dy[:, columns].to(acc),
            torch.zeros_like(h0[d], dtype=acc) if dh_n is None else dh_n[d].to(acc),
            torch.zeros_like(c0[d], dtype=acc) if dc_n is None else dc_n[d].to(acc),
            sizes, c0[d].to(acc), direction, c[d], gates[d].to(acc), fresh_steps, reverse=d == 1,
        )  # fmt: skip
        dh0.append(dh)
        dc0.append(dc)
        if needs_dx and x.is_floating_point():
            dx_d = dgates @ direction.w_ih
            dx = dx_d if dx is None else dx + dx_d
        if needs_dw:
            h_prev = torch.cat(
                _previous(y[:, columns].to(acc).split(sizes), h0[d].to(acc), fresh_steps, reverse=d == 1)
                or [h0[d].to(acc)[:0]]
            )
            dweights.append(_input_weight_gradient(dgates, x, direction.w_ih))
            dweights.append(dgates.t() @ h_prev)
            dweights.extend(dgates.sum(0) for _ in direction.bias)
            if dw_hr is not None:
                dweights.append(dw_hr)
    empty = h0.new_empty(0)
    return (
        empty if dx is None else dx.to(x.dtype),
        torch.stack(dh0).to(h0.dtype),
        torch.stack(dc0).to(h0.dtype),
        [w.to(h0.dtype) for w in dweights] if needs_dw else [h0.new_empty(0) for _ in weights],
    )


def _forward(
    x: Tensor, sizes: list[int], h0: Tensor, c0: Tensor, w: _Direction, fresh: Sequence[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    acc = w.w_hh.dtype
    gx = x.to(acc) @ w.w_ih.t() if x.is_floating_point() else torch.nn.functional.embedding(x, w.w_ih.t())
    for b in w.bias:
        gx = gx + b
    h, c = h0.to(acc), c0.to(acc)
    ys, cs, gates = [], [], []
    for gx_t, fresh_t in _in_time(list(zip(gx.split(sizes), fresh, strict=True)), reverse):
        n = len(gx_t)
        h_prev, c_prev = _unless(fresh_t, h[:n]), _unless(fresh_t, c[:n])
        i, f, g, o = (gx_t + h_prev @ w.w_hh.t()).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_t = f * c_prev + i * g
        m = o * c_t.tanh()
        # The next step reads h as it is stored: the backward, which has only y, must see the same numbers.
        h_t = (m if w.w_hr is None else m @ w.w_hr.t()).to(h0.dtype).to(acc)
        h, c = torch.cat((h_t, h[n:])), torch.cat((c_t, c[n:]))
        ys.append(h_t)
        cs.append(c_t)
        gates.append(torch.cat((i, f, g, o), 1))
    rows = [_in_time(step, reverse) or [first[:0]] for step, first in ((ys, h), (cs, c), (gates, gx))]
    return torch.cat(rows[0]), h, c, torch.cat(rows[1]), torch.cat(rows[2])


def _backward(
    dy: Tensor, dh: Tensor, dc: Tensor, sizes: list[int], c0: Tensor, w: _Direction, c: Tensor, gates: Tensor,
    fresh: Sequence[Tensor | None], reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    c_steps = c.split(sizes)
    before = _previous(c_steps, c0, fresh, reverse)
    steps = zip(dy.split(sizes), gates.split(sizes), c_steps, before, fresh, strict=True)
    dgates = []
    dw_hr = None if w.w_hr is None else torch.zeros_like(w.w_hr)
    for dy_t, gates_t, c_t, c_prev, fresh_t in _in_time(list(steps), not reverse):
        n = len(dy_t)
        i, f, g, o = gates_t.chunk(4, 1)
        tanh_c = c_t.tanh()
        dh_t = dy_t + dh[:n]
        if w.w_hr is None or dw_hr is None:
            dm = dh_t
        else:
            dm = dh_t @ w.w_hr
            dw_hr = dw_hr + dh_t.t() @ (o * tanh_c)
        dc_t = dc[:n] + dm * o * (1 - tanh_c * tanh_c)
        dgates_t = torch.cat(
            (
                dc_t * g * i * (1 - i),
                dc_t * c_prev * f * (1 - f),
                dc_t * i * (1 - g * g),
                dm * tanh_c * o * (1 - o),
            ),
            1,
        )
        dh = torch.cat((_unless(fresh_t, dgates_t @ w.w_hh), dh[n:]))
        dc = torch.cat((_unless(fresh_t, dc_t * f), dc[n:]))
        dgates.append(dgates_t)
    return torch.cat(_in_time(dgates, not reverse) or [gates]), dh, dc, dw_hr


def _previous(
    steps: Sequence[Tensor], first: Tensor, fresh: Sequence[Tensor | None], reverse: bool
) -> list[Tensor]:
    """The state before each step, [n_t, width], from the states after it and the first one."""
    state, before = first, []
    for step, fresh_t in _in_time(list(zip(steps, fresh, strict=True)), reverse):
        before.append(_unless(fresh_t, state[: len(step)]))
        state = torch.cat((step, state[len(step) :]))
    return _in_time(before, reverse)


def _unless(fresh: Tensor | None, state: Tensor) -> Tensor:
    """The state [n, width], or its gradient, and zeros where a row starts anew [n]."""
    return state if fresh is None else state.masked_fill(fresh[:, None], 0)


def _fresh_steps(fresh: Tensor | None, d: int, sizes: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if fresh is None else fresh[d].split(sizes)


def _input_weight_gradient(dgates: Tensor, x: Tensor, w_ih: Tensor) -> Tensor:
    if x.is_floating_point():
        return dgates.t() @ x.to(dgates.dtype)
    return torch.ops.aten.embedding_dense_backward(dgates, x, w_ih.shape[1], -1, False).t().contiguous()


def _in_time(steps: Sequence, reverse: bool) -> list:
    return list(reversed(steps)) if reverse else list(steps)


def _sizes(x: Tensor, batch_sizes: Tensor | None, h0: Tensor) -> list[int]:
    """Rows of each step. An empty batch has no rows, so it counts as no steps."""
    if batch_sizes is not None:
        return batch_sizes.tolist()
    B = h0.shape[1]
    return [B] * (x.shape[0] // B) if B else []


def _directions(weights: Sequence[Tensor], h0: Tensor, c0: Tensor) -> list[_Direction]:
    D, acc = h0.shape[0], accumulation(h0.dtype)
    count = len(weights) // D
    directions = []
    for d in range(D):
        w_ih, w_hh, *rest = (w.to(acc) for w in weights[d * count : (d + 1) * count])
        w_hr = rest.pop() if h0.shape[2] != c0.shape[2] else None
        directions.append(_Direction(w_ih, w_hh, rest, w_hr))
    return directions
