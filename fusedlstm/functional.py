"""The LSTM as a function: checks its arguments, chooses the backend once, then runs layer after layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .backends import Spec, resolve
from .ops import layer_fwd

States = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=1024)
def _cached_resolve(backend: str, *fields: object) -> str:
    return resolve(Spec(*fields), backend)  # type: ignore[arg-type]


def lstm(
    input: Tensor | PackedSequence,
    hx: States | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    backend: str = "auto",
) -> tuple[Tensor | PackedSequence, States]:
    """Runs a stack of LSTM layers over a batch of sequences."""
    if isinstance(input, PackedSequence):
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and sorted_indices is not None:
            hx = (hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices))
        y, h_n, c_n = _stack(
            data, batch_sizes, len(batch_sizes), int(batch_sizes[0]), hx, weights,
            bias, num_layers, dropout if training else 0.0, bidirectional, backend,
        )  # fmt: skip
        if unsorted_indices is not None:
            h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)
    width = int(input.is_floating_point())  # ids have no feature dimension
    batched = input.dim() == 2 + width
    if not batched:
        input = input.unsqueeze(1)
        hx = hx and (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    elif batch_first:
        input = input.transpose(0, 1)
    T, B = input.shape[:2]
    y, h_n, c_n = _stack(
        input.reshape(T * B, *input.shape[2:]), None, T, B, hx, weights,
        bias, num_layers, dropout if training else 0.0, bidirectional, backend,
    )  # fmt: skip
    y = y.view(T, B, y.shape[1])
    if not batched:
        return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def _stack(
    x: Tensor, batch_sizes: Tensor | None, T: int, B: int, hx: States | None, weights: Sequence[Tensor],
    bias: bool, num_layers: int, dropout: float, bidirectional: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    w_ih, w_hh = weights[0], weights[1]
    D = 2 if bidirectional else 1
    H, P = w_ih.shape[0] // 4, w_hh.shape[1]
    if hx is None:
        h0, c0 = w_ih.new_zeros(num_layers * D, B, P), w_ih.new_zeros(num_layers * D, B, H)
    else:
        h0, c0 = hx
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, h0, c0, *weights))
    name = _cached_resolve(
        backend, w_ih.device.type, w_ih.dtype, T, B, w_ih.shape[1], H, P, D, num_layers, bias,
        not x.is_floating_point(), batch_sizes is not None, grad,
    )  # fmt: skip
    if name == "torch":
        if batch_sizes is not None:
            return torch._VF.lstm(
                x, batch_sizes, (h0, c0), list(weights), bias, num_layers, dropout, True, bidirectional
            )
        y, h_n, c_n = torch._VF.lstm(
            x.view(T, B, -1), (h0, c0), list(weights), bias, num_layers, dropout, True, bidirectional, False
        )
        return y.reshape(T * B, -1), h_n, c_n
    h_n, c_n = [], []
    count = len(weights) // num_layers
    for layer in range(num_layers):
        if layer and dropout:
            x = torch.nn.functional.dropout(x, dropout, True)
        states, w = slice(layer * D, layer * D + D), weights[layer * count : (layer + 1) * count]
        x, h, c, _, _ = layer_fwd(x, batch_sizes, h0[states], c0[states], w, grad, name)
        h_n.append(h)
        c_n.append(c)
    return x, torch.cat(h_n), torch.cat(c_n)
