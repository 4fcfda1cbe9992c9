"""The native CPU engine: float32, float64 and bfloat16, every length and direction; the work is in csrc/cpu."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _C
from . import Spec

_LARGE_BYTES = 1 << 18
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # as in csrc/recurrence.h


def supports(spec: Spec) -> str | None:
    """None when the engine can serve the call, else the reason why not."""
    if spec.device != "cpu":
        return f"runs on the CPU, the tensors are on {spec.device}"
    if spec.dtype not in _DTYPES:
        return f"serves float32, float64 and bfloat16, not {spec.dtype}"
    if spec.P != spec.H:
        return f"has no projection (proj_size={spec.P})"
    return None


def layer_forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer in all its directions; arguments and results as backends.eager.layer_forward."""
    D, B, H = h0.shape
    N = x.shape[0]
    y = _empty((N, D * H), h0.dtype)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    accumulation = torch.float64 if h0.dtype == torch.float64 else torch.float32
    c = _empty((D, N, H), accumulation) if save else h0.new_empty(0, dtype=accumulation)
    gates = _empty((D, N, 4 * H), h0.dtype) if save else h0.new_empty(0)
    if N == 0:
        return y, h_n.copy_(h0), c_n.copy_(c0), c, gates
    x, weights = _even_inputs(x, weights, D)
    _C.layer_forward(
        _DTYPES[h0.dtype], torch.get_num_threads(), _sizes(x, batch_sizes, weights[0], B, H, D), _address(batch_sizes),
        *_input_addresses(x), h0.data_ptr(), c0.data_ptr(), _weight_addresses(weights, D),
        y.data_ptr(), h_n.data_ptr(), c_n.data_ptr(), c.data_ptr() if save else 0, gates.data_ptr() if save else 0,
    )  # fmt: skip
    return y, h_n, c_n, c, gates


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
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of one layer; arguments and results as backends.eager.layer_backward."""
    D, B, H = h0.shape
    I = weights[0].shape[1]  # noqa: E741
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0)
    needs_dx = needs_dx and x.is_floating_point()
    if x.shape[0] == 0:
        dh0 = torch.zeros_like(h0) if dh_n is None else dh_n.clone()
        dc0 = torch.zeros_like(c0) if dc_n is None else dc_n.clone()
        return (
            h0.new_zeros(x.shape if needs_dx else 0),
            dh0,
            dc0,
            [w.new_zeros(w.shape if needs_dw else 0) for w in weights],
        )
    x, even_weights = _even_inputs(x, weights, D)
    dx = _empty(x.shape, x.dtype) if needs_dx else h0.new_empty(0)
    # Per direction w_ih, w_hh and one gradient for both biases.
    per_direction = len(weights) // D
    bias = per_direction > 2
    grads = [
        [_empty(even_weights[d * per_direction + k].shape, h0.dtype) for k in range(2 + bias)]
        if needs_dw
        else []
        for d in range(D)
    ]
    _C.layer_backward(
        _DTYPES[h0.dtype], torch.get_num_threads(), _sizes(x, batch_sizes, even_weights[0], B, H, D),
        _address(batch_sizes), _address(dy), _address(dh_n), _address(dc_n), *_input_addresses(x),
        h0.data_ptr(), c0.data_ptr(), _weight_addresses(even_weights, D), y.data_ptr(), c.data_ptr(), gates.data_ptr(),
        dx.data_ptr() if needs_dx else 0, dh0.data_ptr(), dc0.data_ptr(),
        [address for g in grads if g for address in (g[0].data_ptr(), g[1].data_ptr(), g[2].data_ptr() if bias else 0)],
    )  # fmt: skip
    if not needs_dw:
        return dx[:, :I] if needs_dx else dx, dh0, dc0, [w.new_empty(0) for w in weights]
    # b_ih and b_hh have equal gradients; each needs its own tensor.
    dweights = [
        dw for g in grads for dw in (g[0][:, :I].contiguous(), g[1], *([g[2], g[2].clone()] if bias else ()))
    ]
    return dx[:, :I].contiguous() if needs_dx else dx, dh0, dc0, dweights


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """torch.empty, but large memory comes from the engine, which keeps it for the next step when it is freed."""
    count = math.prod(shape)
    if count * dtype.itemsize < _LARGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.from_dlpack(_C.buffer(count * dtype.itemsize)).view(dtype).view(shape)


def _even_inputs(x: Tensor, weights: Sequence[Tensor], D: int) -> tuple[Tensor, Sequence[Tensor]]:
    """bfloat16 is multiplied in pairs of inputs: an odd I gets a column of zeros."""
    if x.dtype != torch.bfloat16 or x.shape[1] % 2 == 0:
        return x, weights
    per_direction = len(weights) // D
    return pad(x, (0, 1)), [w if k % per_direction else pad(w, (0, 1)) for k, w in enumerate(weights)]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _input_addresses(x: Tensor) -> tuple[int, int]:
    return (x.data_ptr(), 0) if x.is_floating_point() else (0, x.data_ptr())


def _sizes(x: Tensor, batch_sizes: Tensor | None, w_ih: Tensor, B: int, H: int, D: int) -> list[int]:
    """T, B, N, I, H, D."""
    N = x.shape[0]
    return [N // B if batch_sizes is None else len(batch_sizes), B, N, w_ih.shape[1], H, D]


def _weight_addresses(weights: Sequence[Tensor], D: int) -> list[int]:
    """Four a direction: w_ih, w_hh, b_ih, b_hh; zero for biases that are not there."""
    addresses = [w.data_ptr() for w in weights]
    if len(addresses) == 2 * D:
        return [address for d in range(D) for address in (*addresses[2 * d : 2 * d + 2], 0, 0)]
    return addresses
