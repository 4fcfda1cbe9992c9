"""The recurrence of one LSTM layer in Triton: persistent kernels and single steps, forward and backward.

Rows are those of a PackedSequence: row(t, b) = start(t) + b, and b is alive at t while b < alive(t).
Direction 1 walks from the last step to the first. In the order in which a direction walks, with c and h
those before step t:

    [i f g o] = act(gx_t + bias + h W_hh^T)      act: sigmoid, sigmoid, tanh, sigmoid
    c_t = f * c + i * g
    h_t = o * tanh(c_t)

    dh_t = dy_t + dh                             dc_t = dc + dh_t * o * (1 - tanh(c_t)^2)
    di = dc_t * g * i(1 - i)                     df = dc_t * c * f(1 - f)
    dg = dc_t * i * (1 - g^2)                    do = dh_t * tanh(c_t) * o(1 - o)
    dh <- [di df dg do] W_hh                     dc <- dc_t * f

A sequence that is not alive keeps its states. Where a row is fresh, c and h before its step are zero, and so
are dc and dh after it. gx_t is x_t W_ih^T, made before by one product over all steps
and kept where the gates are going to be; for ids it is the row of W_ih^T that an id names. Sums, c and
gates are float32.

A program owns BLOCK_H hidden units of BLOCK_B sequences of one direction. Persistent kernels keep its 4
BLOCK_H rows of W_hh on the chip for all T steps. With SLICES = 1 a program has all hidden units, and h
never leaves it; else the SLICES programs of a batch tile exchange h (forward) or partial sums of dh
(backward) through memory, in two buffers by turns, with one barrier a step. No sum uses atomics, so the
same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def _cell(i, f, g, o, c):
    """Gates after their activation, c and h of one step from pre-activations and the c before."""
    i, f, g, o = tl.sigmoid(i), tl.sigmoid(f), libdevice.tanh(g), tl.sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, c, o * libdevice.tanh(c)


@triton.jit
def _cell_backward(dh, dc, i, f, g, o, c, c_prev):
    """Gradients of the pre-activations and of the c before."""
    tanh_c = libdevice.tanh(c)
    dc += dh * o * (1 - tanh_c * tanh_c)
    di = dc * g * i * (1 - i)
    df = dc * c_prev * f * (1 - f)
    dg = dc * i * (1 - g * g)
    do = dh * tanh_c * o * (1 - o)
    return di, df, dg, do, dc * f


@triton.jit
def _step(s, T, B, offsets_ptr, REVERSE, PACKED: tl.constexpr):
    """First row of the s-th step of a direction, and how many sequences are alive; none before the first."""
    t = tl.where(REVERSE, T - 1 - s, s)
    there = (s >= 0) & (s < T)
    if PACKED:
        start = tl.load(offsets_ptr + t, mask=there, other=0)
        alive = tl.load(offsets_ptr + t + 1, mask=there, other=0) - start
    else:
        start = t.to(tl.int64) * B
        alive = tl.where(there, B, 0)
    return start, alive


@triton.jit
def _below(index, H: tl.constexpr, BLOCK: tl.constexpr):
    """index < H, known while compiling where blocks of hidden units leave no rest."""
    if H % BLOCK == 0:
        return tl.full(index.shape, 1, tl.int1)
    else:
        return index < H


@triton.jit
def _interleaved(first, BLOCK_H: tl.constexpr):
    """Gate and hidden unit of each of the 4 BLOCK_H columns of a product.

    Column n = (g // 2) 2 BLOCK_H + 2 u + g % 2: as matrix instructions lay out their result, a thread
    then has all four gates of a unit, and _gates moves nothing between threads.
    """
    n = tl.arange(0, 4 * BLOCK_H)
    return n // (2 * BLOCK_H) * 2 + n % 2, first + n % (2 * BLOCK_H) // 2


@triton.jit
def _gates(acc, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The four gates [BLOCK_B, BLOCK_H] from a product with interleaved columns."""
    ig, fo = tl.split(tl.reshape(acc, (BLOCK_B, 2, BLOCK_H, 2)))
    i, g = tl.split(tl.permute(ig, (0, 2, 1)))
    f, o = tl.split(tl.permute(fo, (0, 2, 1)))
    return i, f, g, o


@triton.jit
def _load_gates(p, mask, H: tl.constexpr):
    """Four tiles, H columns apart."""
    return (
        tl.load(p, mask=mask, other=0.0),
        tl.load(p + H, mask=mask, other=0.0),
        tl.load(p + 2 * H, mask=mask, other=0.0),
        tl.load(p + 3 * H, mask=mask, other=0.0),
    )


@triton.jit
def _store_gates(p, i, f, g, o, mask, H: tl.constexpr):
    dtype: tl.constexpr = p.dtype.element_ty
    tl.store(p, i.to(dtype), mask=mask)
    tl.store(p + H, f.to(dtype), mask=mask)
    tl.store(p + 2 * H, g.to(dtype), mask=mask)
    tl.store(p + 3 * H, o.to(dtype), mask=mask)


@triton.jit
def _load_gx(gx_ptr, ids_ptr, start, alive, b, u, H: tl.constexpr, BLOCK_H: tl.constexpr, IDS: tl.constexpr):
    """The input's share of the four gates [BLOCK_B, BLOCK_H] of one step."""
    row = start + b
    if IDS:
        row = tl.load(ids_ptr + row, mask=b < alive, other=0)
    mask = (b < alive)[:, None] & _below(u, H, BLOCK_H)[None, :]
    return _load_gates(gx_ptr + row[:, None].to(tl.int64) * (4 * H) + u[None, :], mask, H)


@triton.jit
def _load_fresh(fresh_ptr, d, N, start, alive, b):
    """Which sequences [BLOCK_B] start a step from states of zero; none that is not alive."""
    return tl.load(fresh_ptr + d.to(tl.int64) * N + start + b, mask=b < alive, other=0) != 0


@triton.jit
def _unless(fresh, state):
    """The state [BLOCK_B, BLOCK_H], or its gradient, and zeros for sequences that start anew."""
    return tl.where(fresh[:, None], tl.zeros_like(state), state)


@triton.jit
def _arrive(barrier_ptr):
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    tl.atomic_add(barrier_ptr, 1, sem="release", scope="gpu")


@triton.jit
def _wait(barrier_ptr, count):
    while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < count:
        pass
    tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "B", "N"])
def lstm_fwd_kernel(
    gx_ptr, ids_ptr, bias_ptr, w_ptr, hx_ptr, c0_ptr, offsets_ptr, fresh_ptr, barrier_ptr,
    y_ptr, h_n_ptr, c_n_ptr, c_ptr, gates_ptr, T, B, N, gx_stride,
    H: tl.constexpr, SLICES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr, IDS: tl.constexpr, BIAS: tl.constexpr,
    PACKED: tl.constexpr, FRESH: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    part, tile, d, D = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    u = part * BLOCK_H + tl.arange(0, BLOCK_H)
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    gate, unit = _interleaved(part * BLOCK_H, BLOCK_H)
    w = ()
    for chunk in tl.static_range(CHUNKS):
        k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        pw = w_ptr + (d * 4 + gate[None, :]) * (H * H) + unit[None, :] * H + k[:, None]
        w += (
            tl.load(pw, mask=_below(k, H, BLOCK_K)[:, None] & _below(unit, H, BLOCK_H)[None, :], other=0.0),
        )
    state = (d * B + b)[:, None].to(tl.int64) * H + u[None, :]
    valid = (b < B)[:, None] & _below(u, H, BLOCK_H)[None, :]
    c = tl.load(c0_ptr + state, mask=valid, other=0.0).to(tl.float32)
    h = tl.load(hx_ptr + state, mask=valid, other=0.0)
    gx_ptr += d * gx_stride
    barrier_ptr += tile * D + d
    size = D.to(tl.int64) * B * H
    if BIAS:
        bi, bf, bg, bo = _load_gates(bias_ptr + d * 4 * H + u[None, :], _below(u, H, BLOCK_H)[None, :], H)
    start, alive = _step(0, T, B, offsets_ptr, d == 1, PACKED)
    xi, xf, xg, xo = _load_gx(gx_ptr, ids_ptr, start, alive, b, u, H, BLOCK_H, IDS)
    if FRESH:
        fresh = _load_fresh(fresh_ptr, d, N, start, alive, b)
    for s in range(T):
        next_start, next_alive = _step(s + 1, T, B, offsets_ptr, d == 1, PACKED)
        ni, nf, ng, no = _load_gx(gx_ptr, ids_ptr, next_start, next_alive, b, u, H, BLOCK_H, IDS)
        there = b < B
        if FRESH:
            h, c, there = _unless(fresh, h), _unless(fresh, c), there & (fresh == 0)
            fresh = _load_fresh(fresh_ptr, d, N, next_start, next_alive, b)
        if SLICES == 1:
            acc = tl.dot(h, w[0], input_precision=PRECISION)
        else:
            _wait(barrier_ptr, s * SLICES)
            acc = tl.zeros((BLOCK_B, 4 * BLOCK_H), tl.float32)
            for chunk in tl.static_range(CHUNKS):
                k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
                ph = hx_ptr + (s % 2) * size + (d * B + b)[:, None].to(tl.int64) * H + k[None, :]
                hk = tl.load(
                    ph,
                    mask=there[:, None] & _below(k, H, BLOCK_K)[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                acc = tl.dot(hk, w[chunk], acc, input_precision=PRECISION)
        i, f, g, o = _gates(acc, BLOCK_B, BLOCK_H)
        i, f, g, o = i + xi, f + xf, g + xg, o + xo
        if BIAS:
            i, f, g, o = i + bi, f + bf, g + bg, o + bo
        i, f, g, o, c_t, h_t = _cell(i, f, g, o, c)
        live = valid & (b < alive)[:, None]
        c = tl.where(live, c_t, c)
        h = tl.where(live, h_t.to(dtype), h)
        if SLICES > 1:
            tl.store(hx_ptr + ((s + 1) % 2) * size + state, h, mask=valid)
            _arrive(barrier_ptr)
        row = (start + b)[:, None].to(tl.int64)
        tl.store(y_ptr + row * (D * H) + d * H + u[None, :], h, mask=live)
        if SAVE:
            tl.store(c_ptr + (row + d.to(tl.int64) * N) * H + u[None, :], c_t, mask=live)
            pg = gates_ptr + (row + d.to(tl.int64) * N) * (4 * H) + u[None, :]
            _store_gates(pg, i, f, g, o, live, H)
        start, alive, xi, xf, xg, xo = next_start, next_alive, ni, nf, ng, no
    tl.store(h_n_ptr + state, h, mask=valid)
    tl.store(c_n_ptr + state, c.to(dtype), mask=valid)


@triton.jit
def _load_saved(
    gates_ptr, c_ptr, c0_ptr, dy_ptr, s, T, B, N, offsets_ptr, fresh_ptr, b, u, d, D, H: tl.constexpr,
    BLOCK_H: tl.constexpr, PACKED: tl.constexpr, FRESH: tl.constexpr, DY: tl.constexpr,
):  # fmt: skip
    """What the backward of the s-th step reads: rows, gates, c, the c before and dy."""
    start, alive = _step(s, T, B, offsets_ptr, d == 1, PACKED)
    start_before, alive_before = _step(s - 1, T, B, offsets_ptr, d == 1, PACKED)
    row = (start + b)[:, None].to(tl.int64)
    valid = (b < B)[:, None] & _below(u, H, BLOCK_H)[None, :]
    live = valid & (b < alive)[:, None]
    first = d.to(tl.int64) * N
    i, f, g, o = _load_gates(gates_ptr + (first + row) * (4 * H) + u[None, :], live, H)
    c = tl.load(c_ptr + (first + row) * H + u[None, :], mask=live, other=0.0)
    went = live & (b < alive_before)[:, None]
    before = c_ptr + (first + start_before + b[:, None]) * H + u[None, :]
    c0 = c0_ptr + (d * B + b)[:, None].to(tl.int64) * H + u[None, :]
    c_before = tl.load(before, mask=went, other=0.0) + tl.load(c0, mask=live & (went == 0), other=0.0).to(
        tl.float32
    )
    if FRESH:
        c_before = _unless(_load_fresh(fresh_ptr, d, N, start, alive, b), c_before)
    dy = tl.zeros_like(c)
    if DY:
        dy = tl.load(dy_ptr + row * (D * H) + d * H + u[None, :], mask=live, other=0.0).to(tl.float32)
    return row, live, i, f, g, o, c, c_before, dy


@triton.jit(do_not_specialize=["T", "B", "N"])
def lstm_bwd_kernel(
    dy_ptr, dh_ptr, dc_ptr, gates_ptr, c_ptr, c0_ptr, w_ptr, offsets_ptr, fresh_ptr, barrier_ptr,
    partial_ptr, dgates_ptr, dh0_ptr, dc0_ptr, T, B, N,
    H: tl.constexpr, SLICES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr, PACKED: tl.constexpr, FRESH: tl.constexpr,
    DY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    part, tile, d, D = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    u = part * BLOCK_H + tl.arange(0, BLOCK_H)
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    w = ()
    for chunk in tl.static_range(CHUNKS):
        k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        for gate in tl.static_range(4):
            pw = w_ptr + (d * 4 + gate) * (H * H) + u[:, None] * H + k[None, :]
            w += (
                tl.load(pw, mask=_below(u, H, BLOCK_H)[:, None] & _below(k, H, BLOCK_K)[None, :], other=0.0),
            )
    state = (d * B + b)[:, None].to(tl.int64) * H + u[None, :]
    valid = (b < B)[:, None] & _below(u, H, BLOCK_H)[None, :]
    dh = tl.load(dh_ptr + state, mask=valid, other=0.0).to(tl.float32)
    dc = tl.load(dc_ptr + state, mask=valid, other=0.0).to(tl.float32)
    barrier_ptr += tile * D + d
    size = D.to(tl.int64) * B * H
    row, live, i, f, g, o, c, c_before, dy = _load_saved(
        gates_ptr, c_ptr, c0_ptr, dy_ptr, T - 1, T, B, N, offsets_ptr, fresh_ptr, b, u, d, D, H, BLOCK_H,
        PACKED, FRESH, DY,
    )  # fmt: skip
    for step in range(T):
        s = T - 1 - step
        di, df, dg, do, dc_before = _cell_backward(
            dh + dy, dc, i.to(tl.float32), f.to(tl.float32), g.to(tl.float32), o.to(tl.float32), c, c_before
        )
        dc = tl.where(live, dc_before, dc)
        di, df, dg, do = di.to(dtype), df.to(dtype), dg.to(dtype), do.to(dtype)
        _store_gates(dgates_ptr + (d.to(tl.int64) * N + row) * (4 * H) + u[None, :], di, df, dg, do, live, H)
        was_live = live
        if FRESH:
            start, alive = _step(s, T, B, offsets_ptr, d == 1, PACKED)
            fresh = _load_fresh(fresh_ptr, d, N, start, alive, b)
            dc = _unless(fresh, dc)
        if SLICES == 1:
            product = tl.dot(di, w[0], input_precision=PRECISION)
            product = tl.dot(df, w[1], product, input_precision=PRECISION)
            product = tl.dot(dg, w[2], product, input_precision=PRECISION)
            product = tl.dot(do, w[3], product, input_precision=PRECISION)
        else:
            partial = partial_ptr + (step % 2) * SLICES * size
            for chunk in tl.static_range(CHUNKS):
                acc = tl.dot(di, w[4 * chunk], input_precision=PRECISION)
                acc = tl.dot(df, w[4 * chunk + 1], acc, input_precision=PRECISION)
                acc = tl.dot(dg, w[4 * chunk + 2], acc, input_precision=PRECISION)
                acc = tl.dot(do, w[4 * chunk + 3], acc, input_precision=PRECISION)
                k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
                pp = partial + part * size + (d * B + b)[:, None].to(tl.int64) * H + k[None, :]
                tl.store(pp, acc, mask=(b < B)[:, None] & _below(k, H, BLOCK_K)[None, :])
            _arrive(barrier_ptr)
        row, live, i, f, g, o, c, c_before, dy = _load_saved(
            gates_ptr, c_ptr, c0_ptr, dy_ptr, s - 1, T, B, N, offsets_ptr, fresh_ptr, b, u, d, D, H, BLOCK_H,
            PACKED, FRESH, DY,
        )  # fmt: skip
        if SLICES > 1:
            _wait(barrier_ptr, (step + 1) * SLICES)
            product = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            for other in range(SLICES):
                product += tl.load(
                    partial + other * size + state, mask=valid, other=0.0, cache_modifier=".cg"
                )
        dh = tl.where(was_live, product, dh)
        if FRESH:
            dh = _unless(fresh, dh)
    tl.store(dh0_ptr + state, dh.to(dtype), mask=valid)
    tl.store(dc0_ptr + state, dc.to(dtype), mask=valid)


@triton.jit(do_not_specialize=["s", "T", "B", "N"])
def lstm_fwd_step_kernel(
    gx_ptr, ids_ptr, bias_ptr, w_ptr, hx_ptr, cx_ptr, offsets_ptr, fresh_ptr, y_ptr, c_ptr, gates_ptr,
    s, T, B, N, gx_stride,
    H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, IDS: tl.constexpr,
    BIAS: tl.constexpr, PACKED: tl.constexpr, FRESH: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    part, tile, d, D = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    u = part * BLOCK_H + tl.arange(0, BLOCK_H)
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    gate, unit = _interleaved(part * BLOCK_H, BLOCK_H)
    start, alive = _step(s, T, B, offsets_ptr, d == 1, PACKED)
    xi, xf, xg, xo = _load_gx(gx_ptr + d * gx_stride, ids_ptr, start, alive, b, u, H, BLOCK_H, IDS)
    size = D.to(tl.int64) * B * H
    hx = hx_ptr + (s % 2) * size
    there = b < B
    if FRESH:
        fresh = _load_fresh(fresh_ptr, d, N, start, alive, b)
        there &= fresh == 0
    acc = tl.zeros((BLOCK_B, 4 * BLOCK_H), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        hk = tl.load(
            hx + (d * B + b)[:, None].to(tl.int64) * H + k[None, :],
            mask=there[:, None] & _below(k, H, BLOCK_K)[None, :],
            other=0.0,
        )
        pw = w_ptr + (d * 4 + gate[None, :]) * (H * H) + unit[None, :] * H + k[:, None]
        wk = tl.load(pw, mask=_below(k, H, BLOCK_K)[:, None] & _below(unit, H, BLOCK_H)[None, :], other=0.0)
        acc = tl.dot(hk, wk, acc, input_precision=PRECISION)
    i, f, g, o = _gates(acc, BLOCK_B, BLOCK_H)
    i, f, g, o = i + xi, f + xf, g + xg, o + xo
    if BIAS:
        bi, bf, bg, bo = _load_gates(bias_ptr + d * 4 * H + u[None, :], _below(u, H, BLOCK_H)[None, :], H)
        i, f, g, o = i + bi, f + bf, g + bg, o + bo
    state = (d * B + b)[:, None].to(tl.int64) * H + u[None, :]
    valid = (b < B)[:, None] & _below(u, H, BLOCK_H)[None, :]
    live = valid & (b < alive)[:, None]
    c = tl.load(cx_ptr + state, mask=valid, other=0.0)
    if FRESH:
        c = _unless(fresh, c)
    i, f, g, o, c_t, h_t = _cell(i, f, g, o, c)
    h = tl.where(live, h_t.to(dtype), tl.load(hx + state, mask=valid, other=0.0))
    tl.store(cx_ptr + state, c_t, mask=live)
    tl.store(hx_ptr + ((s + 1) % 2) * size + state, h, mask=valid)
    row = (start + b)[:, None].to(tl.int64)
    tl.store(y_ptr + row * (D * H) + d * H + u[None, :], h, mask=live)
    if SAVE:
        tl.store(c_ptr + (d.to(tl.int64) * N + row) * H + u[None, :], c_t, mask=live)
        _store_gates(gates_ptr + (d.to(tl.int64) * N + row) * (4 * H) + u[None, :], i, f, g, o, live, H)


@triton.jit(do_not_specialize=["s", "T", "B", "N"])
def lstm_bwd_step_kernel(
    dy_ptr, dhx_ptr, dcx_ptr, gates_ptr, c_ptr, c0_ptr, w_ptr, offsets_ptr, fresh_ptr, dgates_ptr, s, T, B, N,
    H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr, FRESH: tl.constexpr, DY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The s-th step, from T - 1 down; with s = -1 only dh of the first states, which is left in dhx."""
    part, tile, d, D = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    u = part * BLOCK_H + tl.arange(0, BLOCK_H)
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    start_after, alive_after = _step(s + 1, T, B, offsets_ptr, d == 1, PACKED)
    after = dgates_ptr + (d.to(tl.int64) * N + start_after + b[:, None]) * (4 * H)
    product = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for first in range(0, 4 * H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        dgk = tl.load(
            after + k[None, :],
            mask=(b < alive_after)[:, None] & _below(k, 4 * H, BLOCK_K)[None, :],
            other=0.0,
        )
        pw = w_ptr + d * (4 * H * H) + k[:, None] * H + u[None, :]
        wk = tl.load(pw, mask=_below(k, 4 * H, BLOCK_K)[:, None] & _below(u, H, BLOCK_H)[None, :], other=0.0)
        product = tl.dot(dgk, wk, product, input_precision=PRECISION)
    state = (d * B + b)[:, None].to(tl.int64) * H + u[None, :]
    valid = (b < B)[:, None] & _below(u, H, BLOCK_H)[None, :]
    dh = tl.where((b < alive_after)[:, None], product, tl.load(dhx_ptr + state, mask=valid, other=0.0))
    if FRESH:
        dh = _unless(_load_fresh(fresh_ptr, d, N, start_after, alive_after, b), dh)
    tl.store(dhx_ptr + state, dh, mask=valid)
    row, live, i, f, g, o, c, c_before, dy = _load_saved(
        gates_ptr, c_ptr, c0_ptr, dy_ptr, s, T, B, N, offsets_ptr, fresh_ptr, b, u, d, D, H, BLOCK_H, PACKED,
        FRESH, DY,
    )  # fmt: skip
    dc = tl.load(dcx_ptr + state, mask=valid, other=0.0)
    di, df, dg, do, dc_before = _cell_backward(
        dh + dy, dc, i.to(tl.float32), f.to(tl.float32), g.to(tl.float32), o.to(tl.float32), c, c_before
    )
    if FRESH:
        start, alive = _step(s, T, B, offsets_ptr, d == 1, PACKED)
        dc_before = _unless(_load_fresh(fresh_ptr, d, N, start, alive, b), dc_before)
    tl.store(dcx_ptr + state, dc_before, mask=live)
    _store_gates(
        dgates_ptr + (d.to(tl.int64) * N + row) * (4 * H) + u[None, :],
        di.to(dtype), df.to(dtype), dg.to(dtype), do.to(dtype), live, H,
    )  # fmt: skip
