"""The LSTM in NumPy float64, forward and backward: the written specification for every backend.

One direction of one layer, over T steps of B sequences. For each step t, with s(z) = 1 / (1 + exp(-z)):

    [z_i z_f z_g z_o] = x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh            [B, 4H]
    i = s(z_i)    f = s(z_f)    g = tanh(z_g)    o = s(z_o)                  [B, H] each
    c_t = f * c_{t-1} + i * g                                                [B, H]
    m_t = o * tanh(c_t)                                                      [B, H]
    h_t = m_t W_hr^T with projection, else m_t                               [B, P]

A reversed direction takes t from T-1 down to 0, and h_{t-1}, c_{t-1} are then the states of t+1. A sequence
of fewer than T steps keeps its state where it has no input, and its y is zero there: so a reversed direction
starts at its own last step. Where resets[t, b] is true, sequence b starts anew at t: a border lies between
t-1 and t, and the states that would cross it, in either direction, are zero. A layer's y [T, B, D*P] has its
directions side by side and, multiplied by a dropout mask, feeds the next layer.

The gradients of a scalar follow from those of y, h_n and c_n. With dh and dc the gradients that reach h_t and
c_t from later steps, for each step in the opposite order:

    dh = dh + dy_t                         dm = dh W_hr with projection, else dh
    dc = dc + dm * o * (1 - tanh(c_t)^2)
    dz_i = dc * g * i(1-i)       dz_f = dc * c_{t-1} * f(1-f)
    dz_g = dc * i * (1-g^2)      dz_o = dm * tanh(c_t) * o(1-o)
    dW_ih += dz^T x_t    dW_hh += dz^T h_{t-1}    db_ih, db_hh += sum over B of dz    dW_hr += dh^T m_t
    dx_t = dz W_ih       dh = dz W_hh             dc = dc * f

and where the state before a step was made zero, dh and dc are zero after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Weights(NamedTuple):
    """One direction of one layer; what the options leave out is None."""

    w_ih: Array  # [4H, I]
    w_hh: Array  # [4H, P]
    b_ih: Array | None  # [4H]
    b_hh: Array | None  # [4H]
    w_hr: Array | None  # [P, H]


class Tape(NamedTuple):
    """What the backward of one direction of one layer reads."""

    weights: Weights
    steps: Sequence[int]  # in the order they were taken
    alive: Array  # [T, B, 1] whether the sequence has this step
    fresh: Array  # [T, B, 1] whether the states before this step are zero
    x: Array  # [T, B, I] or ids [T, B]
    h_prev: Array  # [T, B, P] the state each step started from
    c_prev: Array  # [T, B, H]
    gates: Array  # [T, 4, B, H] activated i, f, g, o
    c: Array  # [T, B, H]


class Result(NamedTuple):
    """Outputs of a stack of layers, and the tapes for its backward."""

    y: Array  # [T, B, D*P]
    h_n: Array  # [L*D, B, P]
    c_n: Array  # [L*D, B, H]
    tapes: list[Tape]
    masks: Sequence[Array] | None


class Gradients(NamedTuple):
    """Gradients of a scalar by every input; dweights in the order of the weights."""

    dx: Array | None  # [T, B, I], None for ids
    dh0: Array  # [L*D, B, P]
    dc0: Array  # [L*D, B, H]
    dweights: list[Array]


def sigmoid(z: Array) -> Array:
    """Returns 1 / (1 + exp(-z)), which is 0 where exp overflows."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


def forward(
    x: Array,
    weights: Sequence[Array],
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    lengths: Sequence[int] | None = None,
    masks: Sequence[Array] | None = None,
    resets: Array | None = None,
) -> Result:
    """Runs a stack of layers.

    Args:
        x: input [T, B, I], or integer ids [T, B], which stand for one-hot rows.
        weights: per layer and direction w_ih [4H, I or D*P], w_hh [4H, P], with bias b_ih and b_hh [4H], with
            projection w_hr [P, H].
        h0, c0: first states [L*D, B, P] and [L*D, B, H]; None means zeros.
        num_layers: L.
        bias: the weights include biases.
        bidirectional: D = 2.
        lengths: steps of each sequence [B], at most T; None means T.
        masks: dropout, L-1 factors [T, B, D*P] for the outputs that feed another layer; None means ones.
        resets: whether each sequence starts anew at each step [T, B]; None means nowhere. What it has beyond
            a sequence's length does not count.

    Returns:
        y [T, B, D*P], h_n [L*D, B, P], c_n [L*D, B, H] and the tapes that backward takes.
    """
    T, B = x.shape[:2]
    D = 2 if bidirectional else 1
    directions = _directions(weights, num_layers * D, bias)
    H, P = directions[0].w_ih.shape[0] // 4, directions[0].w_hh.shape[1]
    h0 = np.zeros((num_layers * D, B, P)) if h0 is None else h0
    c0 = np.zeros((num_layers * D, B, H)) if c0 is None else c0
    alive = np.arange(T)[:, None] < np.asarray([T] * B if lengths is None else lengths)
    borders = np.zeros((T + 1, B), bool)  # between t-1 and t
    borders[:T] = False if resets is None else resets & alive
    h_n, c_n, tapes = [], [], []
    for layer in range(num_layers):
        outputs = []
        for k in range(layer * D, layer * D + D):
            steps = range(T) if k % D == 0 else range(T - 1, -1, -1)
            fresh = borders[:-1] if k % D == 0 else borders[1:]
            y, h, c, tape = _forward(
                directions[k], x, h0[k], c0[k], steps, alive[:, :, None], fresh[:, :, None]
            )
            outputs.append(y)
            h_n.append(h)
            c_n.append(c)
            tapes.append(tape)
        x = np.concatenate(outputs, axis=2)
        if masks is not None and layer + 1 < num_layers:
            x = x * masks[layer]
    return Result(x, np.stack(h_n), np.stack(c_n), tapes, masks)


def backward(result: Result, dy: Array, dh_n: Array, dc_n: Array) -> Gradients:
    """Differentiates a stack of layers.

    Args:
        result: what forward returned.
        dy: gradient of y [T, B, D*P]; what it has beyond a sequence's length does not count.
        dh_n, dc_n: gradients of h_n [L*D, B, P] and c_n [L*D, B, H].

    Returns:
        Gradients by x, h0, c0 and every weight.
    """
    h_n, c_n, tapes = result.h_n, result.c_n, result.tapes
    P = h_n.shape[2]
    D = dy.shape[2] // P
    num_layers = len(tapes) // D
    dh0, dc0 = np.zeros_like(h_n), np.zeros_like(c_n)
    dweights: list[list[Array]] = [[] for _ in tapes]
    dx: Array | None = dy
    for layer in reversed(range(num_layers)):
        assert dx is not None  # only the first layer takes ids
        dy, dx = dx, None
        if result.masks is not None and layer + 1 < num_layers:
            dy = dy * result.masks[layer]
        for k in range(layer * D, layer * D + D):
            columns = slice(k % D * P, (k % D + 1) * P)
            dx_k, dh0[k], dc0[k], dweights[k] = _backward(tapes[k], dy[:, :, columns], dh_n[k], dc_n[k])
            dx = dx_k if dx is None or dx_k is None else dx + dx_k
    return Gradients(dx, dh0, dc0, [dw for group in dweights for dw in group])


def _forward(
    w: Weights, x: Array, h: Array, c: Array, steps: Sequence[int], alive: Array, fresh: Array
) -> tuple[Array, Array, Array, Tape]:
    T, (B, P), H = len(steps), h.shape, c.shape[1]
    y, h_prev = np.zeros((T, B, P)), np.zeros((T, B, P))
    c_prev, c_all, gates = np.zeros((T, B, H)), np.zeros((T, B, H)), np.zeros((T, 4, B, H))
    for t in steps:
        h, c = np.where(fresh[t], 0, h), np.where(fresh[t], 0, c)
        h_prev[t], c_prev[t] = h, c
        z = (x[t] @ w.w_ih.T if x.ndim == 3 else w.w_ih.T[x[t]]) + h @ w.w_hh.T
        if w.b_ih is not None and w.b_hh is not None:
            z = z + w.b_ih + w.b_hh
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
        gates[t] = i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
        c_all[t] = f * c + i * g
        m = o * np.tanh(c_all[t])
        h_t = m if w.w_hr is None else m @ w.w_hr.T
        y[t] = np.where(alive[t], h_t, 0)
        h, c = np.where(alive[t], h_t, h), np.where(alive[t], c_all[t], c)
    return y, h, c, Tape(w, steps, alive, fresh, x, h_prev, c_prev, gates, c_all)


def _backward(
    tape: Tape, dy: Array, dh_next: Array, dc_next: Array
) -> tuple[Array | None, Array, Array, list[Array]]:
    w, steps, alive, fresh, x, h_prev, c_prev, gates, c_all = tape
    ids = x.ndim == 2
    dx = None if ids else np.zeros_like(x, dtype=np.float64)
    dw_ih, dw_hh, db = np.zeros_like(w.w_ih), np.zeros_like(w.w_hh), np.zeros(len(w.w_ih))
    dw_hr = None if w.w_hr is None else np.zeros_like(w.w_hr)
    for t in reversed(steps):
        (i, f, g, o), tanh_c = gates[t], np.tanh(c_all[t])
        # Where a sequence has no such step, its gradients pass by untouched.
        dh = np.where(alive[t], dh_next + dy[t], 0)
        dc = np.where(alive[t], dc_next, 0)
        if w.w_hr is None or dw_hr is None:
            dm = dh
        else:
            dm = dh @ w.w_hr
            dw_hr += dh.T @ (o * tanh_c)
        dc = dc + dm * o * (1 - tanh_c**2)
        dz = np.concatenate(
            (
                dc * g * i * (1 - i),
                dc * c_prev[t] * f * (1 - f),
                dc * i * (1 - g**2),
                dm * tanh_c * o * (1 - o),
            ),
            axis=1,
        )
        dw_hh += dz.T @ h_prev[t]
        db += dz.sum(axis=0)
        if dx is None:
            np.add.at(dw_ih.T, x[t], dz)
        else:
            dw_ih += dz.T @ x[t]
            dx[t] = dz @ w.w_ih
        dh_next = np.where(fresh[t], 0, np.where(alive[t], dz @ w.w_hh, dh_next))
        dc_next = np.where(fresh[t], 0, np.where(alive[t], dc * f, dc_next))
    dweights = (
        [dw_ih, dw_hh] + ([] if w.b_ih is None else [db, db.copy()]) + ([] if dw_hr is None else [dw_hr])
    )
    return dx, dh_next, dc_next, dweights


def _directions(weights: Sequence[Array], count: int, bias: bool) -> list[Weights]:
    each, few = len(weights) // count, 4 if bias else 2
    directions = []
    for k in range(count):
        w_ih, w_hh, *rest = weights[k * each : (k + 1) * each]
        b_ih, b_hh = (rest[0], rest[1]) if bias else (None, None)
        directions.append(Weights(w_ih, w_hh, b_ih, b_hh, rest[-1] if each > few else None))
    return directions
