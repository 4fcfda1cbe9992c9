"""The native CPU engine: float32, float64 and bfloat16, any lengths; the work is in csrc/cpu."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _C
from . import Spec, Stack, accumulation

_LARGE_BYTES = 1 << 18
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # as in csrc/recurrence.h
_PRECISIONS = {"float32": 0, "bfloat16": 1, "int8": 2}  # as in csrc/cpu/generator.h


def supports(spec: Spec) -> str | None:
    """None when the engine can serve the call, else the reason why not."""
    if spec.device != "cpu":
        return f"runs on the CPU, the tensors are on {spec.device}"
    if spec.dtype not in _DTYPES:
        return f"serves float32, float64 and bfloat16, not {spec.dtype}"
    if spec.P != spec.H:
        return f"has no projection (proj_size={spec.P})"
    return None


def slower(spec: Spec) -> str | None:
    """Where torch was measured faster (benchmarks/RESULTS.md), in words; None elsewhere."""
    if spec.packed or spec.resets:  # oneDNN takes no packed batch, and cut at resets every batch is one
        return None
    if not spec.grad and spec.dtype == torch.float32 and spec.H >= 512 and spec.B >= 64 and spec.T > 1:
        return "torch (oneDNN) was measured 1.1 times as fast in inference at L=3, H=512, B=100, T=50"
    return None


def kernel(spec: Spec) -> str:
    """The instruction set that serves a call."""
    return f"{_C.engine()} engine"


def layer_forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer in all its directions; arguments and results as backends.eager.layer_forward."""
    D, _, H = h0.shape
    N = x.shape[0]
    y = _empty((N, D * H), h0.dtype)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    c = _empty((D, N, H) if save else (0,), accumulation(h0.dtype))
    gates = _empty((D, N, 4 * H) if save else (0,), h0.dtype)
    if N == 0:
        return y, h_n.copy_(h0), c_n.copy_(c0), c, gates
    x, weights = _even_inputs(x, weights, D)
    _C.layer_forward(
        *_call(x, batch_sizes, h0, weights[0]), *_input_addresses(x),
        _address(h0), _address(c0), _weight_addresses(weights, D),
        _address(y), _address(h_n), _address(c_n), _address(c), _address(gates),
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
    D = h0.shape[0]
    I = weights[0].shape[1]  # noqa: E741
    needs_dx = needs_dx and x.is_floating_point()
    if x.shape[0] == 0:
        dx = h0.new_zeros(x.shape if needs_dx else 0)
        dh0, dc0 = (torch.zeros_like(h) if dh is None else dh.clone() for h, dh in ((h0, dh_n), (c0, dc_n)))
        return dx, dh0, dc0, [w.new_zeros(w.shape if needs_dw else 0) for w in weights]
    x, weights = _even_inputs(x, weights, D)
    dx = _empty(x.shape if needs_dx else (0,), h0.dtype)
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0)
    # Per direction w_ih, w_hh and (b_ih, b_hh), which have one gradient.
    per_direction = len(weights) // D
    wanted = [k for k in range(len(weights)) if needs_dw and k % per_direction < 3]
    dw = {k: _empty(weights[k].shape, h0.dtype) for k in wanted}
    dw_addresses = [
        _address(dw.get(d * per_direction + k) if k < per_direction else None)
        for d in range(D)
        for k in range(3)
        if needs_dw
    ]
    _C.layer_backward(
        *_call(x, batch_sizes, h0, weights[0]), _address(dy), _address(dh_n), _address(dc_n),
        *_input_addresses(x), _address(h0), _address(c0), _weight_addresses(weights, D),
        _address(y), _address(c), _address(gates),
        _address(dx), _address(dh0), _address(dc0), dw_addresses,
    )  # fmt: skip
    if needs_dx:
        dx = dx[:, :I].contiguous()
    if not needs_dw:
        return dx, dh0, dc0, [h0.new_empty(0) for _ in weights]
    dweights = []
    for k in range(len(weights)):
        if k % per_direction == 0:
            dweights.append(dw[k][:, :I].contiguous())
        else:
            dweights.append(dw[k] if k in dw else dw[k - 1].clone())
    return dx, dh0, dc0, dweights


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """torch.empty, but large memory comes from the engine, which keeps it when it is freed."""
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


def _call(x: Tensor, batch_sizes: Tensor | None, h0: Tensor, w_ih: Tensor) -> tuple[int, int, list[int], int]:
    """What both calls begin with: dtype, threads, [T, B, N, I, H, D] and the address of batch_sizes."""
    (D, B, H), N = h0.shape, x.shape[0]
    T = N // B if batch_sizes is None else len(batch_sizes)
    return _DTYPES[h0.dtype], torch.get_num_threads(), [T, B, N, w_ih.shape[1], H, D], _address(batch_sizes)


def _address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers are; 0 when there are none."""
    return 0 if tensor is None else tensor.data_ptr()


def _input_addresses(x: Tensor) -> tuple[int, int]:
    """Of x and of ids, one of which is 0."""
    return (x.data_ptr(), 0) if x.is_floating_point() else (0, x.data_ptr())


def _weight_addresses(weights: Sequence[Tensor], D: int) -> list[int]:
    """Four a direction: w_ih, w_hh, b_ih, b_hh; 0 for biases that are not there."""
    addresses = [w.data_ptr() for w in weights]
    if len(addresses) == 2 * D:
        return [address for d in range(D) for address in (*addresses[2 * d : 2 * d + 2], 0, 0)]
    return addresses


def generator(stack: Stack, B: int, precision: str, seed: int) -> _Writer:
    """What writes B streams with a stack: see fusedlstm.generate.

    Raises:
        ValueError: the engine does not keep weights in that precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    return _Writer(stack, B, precision, seed)


class _Writer:
    """B streams on the engine: h and c [L, B, H], and the last characters, which they do not know yet [B]."""

    def __init__(self, stack: Stack, B: int, precision: str, seed: int) -> None:
        L, V, H = stack.sizes
        self.h, self.c = torch.zeros(L, B, H), torch.zeros(L, B, H)
        self.last = torch.zeros(B, dtype=torch.int64)
        self._seed = seed
        weights, scales = _narrowed(stack.weights, precision)
        decoder, decoder_scales = _narrowed(stack.decoder, precision)
        self._native = _C.Generator(
            _PRECISIONS[precision], [L, V, H], _address(stack.table), _address(weights), _address(scales),
            _address(stack.biases), _address(decoder), _address(decoder_scales), _address(stack.decoder_bias),
        )  # fmt: skip

    def generate(
        self, count: int, first_position: int, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> Tensor:
        """The next characters [count, B]."""
        ids = torch.empty(count, len(self.last), dtype=torch.int64)
        self._run(ids, first_position, (self._seed, temperature, top_k, top_p, min_p), None)
        return ids

    def read(self, ids: Tensor, scored: bool) -> Tensor:
        """Takes in characters [T, B]; scored returns -log of the probability that each had [T, B]."""
        nats = torch.empty(ids.shape if scored else (0,))
        self._run(ids.contiguous(), 0, None, nats if scored else None)
        return nats

    def _run(
        self,
        ids: Tensor,
        position: int,
        choice: tuple[int, float, int, float, float] | None,
        nats: Tensor | None,
    ) -> None:
        self._native.run(
            torch.get_num_threads(), len(self.last), len(ids), position, choice,
            _address(ids), _address(self.last), _address(self.h), _address(self.c), _address(nats),
        )  # fmt: skip


def _narrowed(weights: Tensor, precision: str) -> tuple[Tensor, Tensor | None]:
    """Weights [..., H] in a precision; int8 also has the scale of each row [...]: its largest size is 127."""
    if precision != "int8":
        return weights.to(getattr(torch, precision)), None
    scales = weights.abs().amax(-1) / 127
    scales = scales.where(scales > 0, 1.0)  # a row of zeros
    return (weights / scales[..., None]).round().to(torch.int8), scales
