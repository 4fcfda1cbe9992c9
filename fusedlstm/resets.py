"""Sequences that start anew in the middle: masks for backends that take them, shorter sequences for the rest.

A border lies before step t of sequence b where resets[t, b] is true: the states that would cross it, in
either direction, are zero. All layers have the same borders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence

Outputs = tuple[Tensor, Tensor, Tensor]


class Pieces(NamedTuple):
    """A batch of B sequences in N rows, cut at its borders into a packed batch of Q pieces.

    Args:
        batch_sizes: pieces alive at each step.
        rows: which row of the batch each row of the pieces is [N]. back: the inverse [N].
        begins: for each direction, the sequence whose first states each piece starts from [Q]; B for zeros.
        ends: for each direction, the piece with which each sequence ends [B].
    """

    batch_sizes: Tensor
    rows: Tensor
    back: Tensor
    begins: list[Tensor]
    ends: list[Tensor]


def dense_rows(
    resets: Tensor | PackedSequence, T: int, B: int, batched: bool, batch_first: bool, device: torch.device
) -> Tensor:
    """Checks the resets of a padded batch, or of one sequence, and returns them in rows [T*B]."""
    axes = {"T": T, "B": B} if batched else {"T": T}
    names = sorted(axes) if batch_first else list(axes)
    resets = _checked(resets, f"[{', '.join(names)}]", [axes[name] for name in names], device)
    return (resets.t() if batched and batch_first else resets).reshape(T * B)


def packed_rows(resets: Tensor | PackedSequence, input: PackedSequence) -> Tensor:
    """Checks the resets of a packed batch and returns them in its rows [N]."""
    if not isinstance(resets, PackedSequence):
        raise TypeError(
            f"resets must be a PackedSequence, as the input is, got {type(resets).__name__}: "
            "pack them as the input was packed"
        )
    data = _checked(resets.data, "a PackedSequence of [N]", input.data.shape[:1], input.data.device)
    for name in ("batch_sizes", "sorted_indices"):
        ours, inputs = getattr(resets, name), getattr(input, name)
        if ours is not inputs and (ours is None or inputs is None or not torch.equal(ours, inputs)):
            raise RuntimeError(
                f"resets must have the lengths and the order of the input, got another {name}: "
                "pack them as the input was packed"
            )
    return data


def unreadable(resets: Tensor) -> bool:
    """Whether values cannot be looked at: torch.compile and vmap show a stand-in, "meta" has none."""
    return torch.compiler.is_compiling() or resets.is_meta or _mapped(resets)


def fresh_rows(resets: Tensor, batch_sizes: Tensor | None, B: int, D: int) -> Tensor:
    """Whether the states before each row's step are zero [D, N], from resets in rows [N]."""
    if D == 1:
        return resets.unsqueeze(0)
    # Walking back, a row's step comes after that of the sequence's next row, which has the border before it.
    if batch_sizes is None:
        return torch.stack((resets, torch.cat((resets[B:], torch.zeros_like(resets[:B])))))
    t = torch.repeat_interleave(batch_sizes)
    after = torch.arange(len(t)) + batch_sizes[t]
    last = after >= (batch_sizes.cumsum(0) + pad(batch_sizes[1:], (0, 1)))[t]
    after = after.masked_fill(last, len(t)).to(resets.device, non_blocking=True)
    return torch.stack((resets, pad(resets, (0, 1)).index_select(0, after)))


def in_pieces(
    run: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Outputs],
    x: Tensor, h0: Tensor, c0: Tensor, resets: Tensor, batch_sizes: Tensor | None, D: int,
) -> Outputs:  # fmt: skip
    """Cuts a batch, lets run have x, batch_sizes and hx of the pieces, and joins what it returns."""
    pieces = cut(resets, batch_sizes, h0.shape[1], D)
    zeros = (0, 0, 0, 1)  # one sequence more
    hx = _select(pad(h0, zeros), pieces.begins), _select(pad(c0, zeros), pieces.begins)
    y, h_n, c_n = run(x.index_select(0, pieces.rows), pieces.batch_sizes, hx)
    return y.index_select(0, pieces.back), _select(h_n, pieces.ends), _select(c_n, pieces.ends)


def cut(resets: Tensor, batch_sizes: Tensor | None, B: int, D: int) -> Pieces:
    """Cuts a batch of B >= 1 sequences at its borders.

    Args:
        resets: in rows [N]. Their values are waited for, since the number of pieces depends on them.
        batch_sizes: sequences alive at each step [T]; None when all B always are.
        D: directions.
    """
    device, resets = resets.device, resets.cpu()
    N = len(resets)
    if batch_sizes is None:
        batch_sizes = torch.full((N // B,), B)
    start = batch_sizes.cumsum(0) - batch_sizes
    sequence = torch.arange(N) - torch.repeat_interleave(start, batch_sizes)
    # Sequence after sequence, each in time: a piece is then one run of rows.
    order = sequence.argsort(stable=True)
    opens = order < B  # first rows of sequences
    new = resets[order] | opens
    first = new.nonzero().squeeze(1)
    piece, Q = new.cumsum(0) - 1, len(first)
    lengths = first.diff(append=torch.tensor([N]))
    place = _inverse(lengths.argsort(descending=True, stable=True))  # of a piece in its batch, longest first
    sizes = Q - torch.bincount(lengths).cumsum(0)[:-1]
    step = torch.arange(N) - first[piece]
    row = (sizes.cumsum(0) - sizes)[step] + place[piece]
    back = row[_inverse(order)]

    opening = opens[first].nonzero().squeeze(1)
    firsts, lasts = place[opening], place[pad(opening[1:], (0, 1), value=Q) - 1]
    all_zero, sequences = torch.full((Q,), B), torch.arange(B)
    begins = [
        all_zero.index_put((firsts,), sequences.masked_fill(resets[:B], B)),
        all_zero.index_put((lasts,), sequences),
    ]
    moved = [[i.to(device) for i in found[:D]] for found in (begins, [lasts, firsts])]
    return Pieces(sizes, _inverse(back).to(device), back.to(device), *moved)


def _select(states: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """States [L*D, Q, width] from those [L*D, B, width], by each direction's index."""
    D = len(indices)
    return torch.stack([states[d::D].index_select(1, i) for d, i in enumerate(indices)], 1).flatten(0, 1)


def _inverse(permutation: Tensor) -> Tensor:
    return torch.empty_like(permutation).scatter_(0, permutation, torch.arange(len(permutation)))


def _checked(resets: object, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets must be a Tensor, got {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise RuntimeError(f"resets must be of torch.bool, got {resets.dtype}: convert with .bool()")
    if resets.shape != tuple(shape):
        raise RuntimeError(f"resets must be {name} = {list(shape)}, got {list(resets.shape)}")
    if resets.device != device:
        raise RuntimeError(
            f"resets must be on the device of the input, {device}, got {resets.device}: use .to()"
        )
    return resets


def _mapped(tensor: Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False
