"""The LSTM as functions: check the arguments, choose the backend once, run layer after layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .backends import Spec, resolve, takes_resets
from .ops import run_layer
from .resets import dense_rows, fresh_rows, in_pieces, packed_rows, unreadable

States = tuple[Tensor, Tensor]


class Options(NamedTuple):
    """The options of a stack of layers: those of torch.nn.LSTM by its names, then our own."""

    bias: bool
    num_layers: int = 1
    dropout: float = 0.0
    training: bool = False
    bidirectional: bool = False
    recompute: bool = False


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
    recompute: bool = False,
    backend: str = "auto",
    resets: Tensor | PackedSequence | None = None,
) -> tuple[Tensor | PackedSequence, States]:
    """Runs a stack of LSTM layers over a batch of sequences.

    Args:
        input: [T, B, I], [B, T, I] with batch_first, [T, I] for one sequence, or a PackedSequence; or int64
            ids without the last dimension, which stand for one-hot rows of width I.
        hx: first states h0 [L*D, B, P] and c0 [L*D, B, H], without B for one sequence; None means zeros.
        weights: per layer and direction w_ih [4H, I or D*P], w_hh [4H, P], then b_ih and b_hh [4H] with bias,
            then w_hr [P, H] with projection: the order of torch.nn.LSTM.
        bias: weights include biases.
        num_layers: L.
        dropout: probability to zero an output of a layer that feeds another one, while training.
        training: apply dropout.
        bidirectional: D = 2 directions instead of 1.
        batch_first: input and output have B before T; the states do not.
        recompute: the backward makes the gates again, from x and y, instead of keeping them: a layer then
            keeps 2 N H numbers instead of 6, for the time of two more matrix products.
        backend: "auto", or the name of the backend that must serve the call.
        resets: where sequences start anew, bool [T, B], in the input's layout: the states before that step
            are zero in all layers, and none crosses the border before it in either direction. For a
            PackedSequence one of bool with the same lengths and order. None means nowhere.

    Returns:
        y [T, B, D*P] in the input's layout, and (h_n [L*D, B, P], c_n [L*D, B, H]).

    Raises:
        TypeError, ValueError, RuntimeError: an argument of the wrong type, dtype, shape or device; a backend
            that cannot serve the call.
        IndexError: ids outside 0 <= id < I.
    """
    _check_count(weights, bias, num_layers, bidirectional)
    options = Options(bias, num_layers, dropout, training, bidirectional, recompute)
    if isinstance(input, PackedSequence):
        x, batch_sizes, sorted_indices, unsorted_indices = input
        ids = _is_ids(x, weights[0], RuntimeError)
        if x.dim() != 2 - ids:
            raise RuntimeError(f"input.data must be {2 - ids}D, got {x.dim()}D")
        if hx is not None:
            _check_pair(hx)
            if sorted_indices is not None:
                hx = hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices)
        T, B = len(batch_sizes), int(batch_sizes[0])
        anew = None if resets is None else packed_rows(resets, input)
        y, h_n, c_n = _stack(x, batch_sizes, T, B, hx, weights, options, backend, anew)
        if unsorted_indices is not None:
            h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)

    ids = _is_ids(input, weights[0], ValueError)
    batched = input.dim() == 3 - ids
    if not batched:
        if input.dim() != 2 - ids:
            raise ValueError(f"input must be {'1D or 2D ids' if ids else '2D or 3D'}, got {input.dim()}D")
        input = input.unsqueeze(1)
    elif batch_first:
        input = input.transpose(0, 1)
    if hx is not None:
        _check_pair(hx, 3 if batched else 2)
        hx = hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    T, B = input.shape[0], input.shape[1]
    if T == 0:
        raise RuntimeError("input must have at least one step, got T = 0")
    x = input.reshape(T * B) if ids else input.reshape(T * B, input.shape[2])
    anew = None if resets is None else dense_rows(resets, T, B, batched, batch_first, x.device)
    y, h_n, c_n = _stack(x, None, T, B, hx, weights, options, backend, anew)
    if not batched:
        return y, (h_n.squeeze(1), c_n.squeeze(1))
    y = y.view(T, B, y.shape[1])
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def lstm_cell(
    input: Tensor,
    hx: States | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> States:
    """Runs one step of an LSTM.

    Args:
        input: [B, I], or [I] for one sequence; or int64 ids without the last dimension.
        hx: states h and c [B, H], or [H] for one sequence; None means zeros.
        w_ih, w_hh, b_ih, b_hh: weights [4H, I], [4H, H] and biases [4H], both or none.
        backend: "auto", or the name of the backend that must serve the call.

    Returns:
        h and c after the step, shaped as hx.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError: as lstm does.
    """
    ids = _is_ids(input, w_ih, RuntimeError)
    batched = input.dim() == 2 - ids
    if not batched and input.dim() != 1 - ids:
        raise ValueError(f"input must be {'0D or 1D ids' if ids else '1D or 2D'}, got {input.dim()}D")
    if hx is not None:
        _check_pair(hx)
        for k, state in enumerate(hx):
            if state.dim() not in (1, 2):
                raise ValueError(f"hx[{k}] must be 1D or 2D, got {state.dim()}D")
            if state.dim() != 1 + batched:
                raise RuntimeError(f"hx[{k}] must be {1 + batched}D for this input, got {state.dim()}D")
        hx = (
            (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
            if batched
            else (hx[0].view(1, 1, -1), hx[1].view(1, 1, -1))
        )
    x = input if batched else input.unsqueeze(0)
    weights = [w_ih, w_hh] if b_ih is None or b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    name = cell_backend(backend, w_ih, ids)
    _, h, c = _stack(x, None, 1, x.shape[0], hx, weights, Options(len(weights) == 4), name, cell=True)
    return (h.squeeze(0), c.squeeze(0)) if batched else (h.view(-1), c.view(-1))


def cell_backend(backend: str, weight: Tensor, ids: bool) -> str:
    """Returns whom to ask for one step: under autocast torch mixes dtypes, and "auto" leaves that to it."""
    mixed = backend == "auto" and not ids and _autocasts(weight.device.type)
    return "torch" if mixed else backend


def spec(
    weights: Sequence[Tensor], T: int, B: int, bias: bool, num_layers: int, bidirectional: bool, ids: bool,
    packed: bool, grad: bool, resets: bool = False, recompute: bool = False,
) -> Spec:  # fmt: skip
    """Returns what a call with these weights and sizes asks of a backend, under the present autocast."""
    w_ih, w_hh = weights[0], weights[1]
    return Spec(
        w_ih.device.type, _storage_dtype(w_ih), T, B, w_ih.shape[1], w_ih.shape[0] // 4, w_hh.shape[1],
        1 + bidirectional, num_layers, bias, ids, packed, grad, resets, recompute=recompute,
    )  # fmt: skip


def _stack(
    x: Tensor,
    batch_sizes: Tensor | None,
    T: int,
    B: int,
    hx: States | None,
    weights: Sequence[Tensor],
    options: Options,
    backend: str,
    resets: Tensor | None = None,
    cell: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs all layers on time-major rows [N, I] or ids [N], resets [N]; hx has B in dimension 1."""
    bias, L, dropout, training, bidirectional, recompute = options
    w_ih, w_hh = weights[0], weights[1]
    I, H, P = w_ih.shape[1], w_ih.shape[0] // 4, w_hh.shape[1]  # noqa: E741
    D, ids = 1 + bidirectional, x.dim() == 1
    if not ids and x.shape[1] != I:
        raise RuntimeError(f"input.size(-1) must be input_size = {I}, got {x.shape[1]}")
    if x.device != w_ih.device:
        raise RuntimeError(
            f"input must be on the device of the weights, {w_ih.device}, got {x.device}: use .to()"
        )
    if hx is None:
        h0 = w_ih.new_zeros((L * D, B, P))
        c0 = h0 if P == H else w_ih.new_zeros((L * D, B, H))
    else:
        h0, c0 = hx
        _check_state(0, h0, (L * D, B, P), w_ih)
        _check_state(1, c0, (L * D, B, H), w_ih)
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, h0, c0, *weights))
    device = w_ih.device.type
    casts = _autocasts(device)
    dtype = _storage_dtype(w_ih) if casts else w_ih.dtype
    # A cache is opaque to tracing, and symbolic sizes do not hash.
    choose = _resolve if torch.compiler.is_compiling() else _resolve_cached
    name = choose(
        backend, device, dtype, T, B, I, H, P, D, L, bias, ids, batch_sizes is not None, grad,
        resets is not None, resets is not None and unreadable(resets), recompute,
    )  # fmt: skip
    fresh = None
    if resets is not None and B:
        if not takes_resets(name):
            return in_pieces(
                lambda x, sizes, hx: _stack(x, sizes, len(sizes), int(sizes[0]), hx, weights, options, name),
                x, h0, c0, resets, batch_sizes, D,
            )  # fmt: skip
        fresh = fresh_rows(resets, batch_sizes, B, D)
    if name == "torch":
        # Tensors as they came: under autocast torch casts by its own rules.
        if cell:
            h, c = torch._VF.lstm_cell(x, (h0[0], c0[0]), *weights)
            return h, h.unsqueeze(0), c.unsqueeze(0)
        if batch_sizes is not None:
            return torch._VF.lstm(x, batch_sizes, (h0, c0), list(weights), *options[:5])
        y, h_n, c_n = torch._VF.lstm(x.view(T, B, I), (h0, c0), list(weights), *options[:5], False)
        return y.reshape(T * B, D * P), h_n, c_n
    if casts:
        x = x if ids else x.to(dtype)
        h0, c0, weights = h0.to(dtype), c0.to(dtype), [w.to(dtype) for w in weights]
    if L == 1:
        return run_layer(x, batch_sizes, h0, c0, weights, grad, name, fresh, recompute)[:3]
    hs, cs, count = [], [], len(weights) // L
    for layer in range(L):
        if layer and dropout and training:
            x = torch.nn.functional.dropout(x, dropout, True)
        states, w = slice(layer * D, layer * D + D), weights[layer * count : (layer + 1) * count]
        save = grad and any(t.requires_grad for t in (x, h0, c0, *w))
        x, h, c, _, _ = run_layer(x, batch_sizes, h0[states], c0[states], w, save, name, fresh, recompute)
        hs.append(h)
        cs.append(c)
    return x, torch.cat(hs), torch.cat(cs)


def _storage_dtype(weight: Tensor) -> torch.dtype:
    """The dtype to compute with: that of the weights, or autocast's, which like torch's spares float64."""
    device = weight.device.type
    if _autocasts(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)  # which raises for "meta"


def _is_ids(x: Tensor, weight: Tensor, wrong: type[Exception]) -> bool:
    """Whether the input is ids; raises unless it is either that or of a dtype that goes with the weights."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(x).__name__}")
    if x.dtype == weight.dtype:
        return False
    if x.dtype == torch.int64:
        return True
    if x.is_floating_point() and _autocasts(weight.device.type):
        return False
    raise wrong(
        f"input must have the dtype of the weights, {weight.dtype} (or torch.int64 for ids), got {x.dtype}: "
        f"convert the input with .to({weight.dtype}) or the module with .to({x.dtype})"
    )


def _check_count(weights: Sequence[Tensor], bias: bool, num_layers: int, bidirectional: bool) -> None:
    each, rest = divmod(len(weights), num_layers * (1 + bidirectional))
    few = 4 if bias else 2
    if rest or each not in (few, few + 1):
        raise RuntimeError(
            f"weights must be {few} (with projection {few + 1}) for each of {num_layers} layers and "
            f"{1 + bidirectional} directions, got {len(weights)}"
        )


def _check_pair(hx: States, dim: int = 0) -> None:
    if len(hx) != 2:
        raise RuntimeError(f"hx must be two states (h0, c0), got {len(hx)}")
    for state in hx:
        if not isinstance(state, Tensor):
            raise TypeError(f"hx must be Tensors, got {type(state).__name__}")
        if dim and state.dim() != dim:
            raise RuntimeError(f"hx must be {dim}D for {'un' * (dim == 2)}batched input, got {state.dim()}D")


def _check_state(k: int, state: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    if state.shape != shape:
        raise RuntimeError(f"hx[{k}] must be [L*D, B, {'PH'[k]}] = {list(shape)}, got {list(state.shape)}")
    if state.device != weight.device:
        raise RuntimeError(
            f"hx[{k}] must be on the device of the weights, {weight.device}, got {state.device}"
        )
    if state.dtype != weight.dtype and not (state.is_floating_point() and _autocasts(weight.device.type)):
        raise RuntimeError(f"hx[{k}] must have the dtype of the weights, {weight.dtype}, got {state.dtype}")


def _resolve(backend: str, *fields: Any) -> str:
    return resolve(Spec(*fields), backend)


_resolve_cached = functools.lru_cache(maxsize=1024)(_resolve)
