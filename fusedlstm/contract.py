"""What the layer ops ask of their arguments; backends take raw addresses, so nothing else may reach them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import accumulation, takes_resets


def check(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor],
    fresh: Tensor | None, backend: str,
) -> None:  # fmt: skip
    """Raises unless the inputs of a layer fit each other.

    Args:
        x: rows [N, I], or int64 ids [N].
        batch_sizes: int64 [T] on the CPU, non-increasing from B, of sum N; None stands for T times B.
        h0: [D, B, P]. c0: [D, B, H].
        weights: per direction w_ih [4H, I], w_hh [4H, P], (b_ih, b_hh [4H]), (w_hr [P, H] unless P == H).
        fresh: bool [D, N]; None stands for false.
        backend: the name of the one that is to run.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the backend takes no reset masks.
        IndexError: ids outside 0 <= id < I.
    """
    hs, cs = h0.shape, c0.shape
    if len(hs) != 3 or len(cs) != 3 or hs[0] != cs[0] or hs[1] != cs[1] or hs[0] not in (1, 2):
        raise RuntimeError(
            f"h0 and c0 must be [D, B, P] and [D, B, H] with D = 1 or 2, got {list(hs)} and {list(cs)}"
        )
    D, B, P = hs
    I, dtype, device = weights[0].shape[-1] if weights else 0, h0.dtype, h0.device  # noqa: E741
    shapes = _weight_shapes(I, cs[2], P, D, len(weights))
    found = [w.shape for w in weights]
    if found != shapes:
        _raise_wrong_shape(shapes, weights, projection=cs[2] != P)
    for tensor in (x, c0, *weights):
        if tensor.device != device or (
            tensor.dtype != dtype and not (tensor is x and x.dtype == torch.int64)
        ):
            raise RuntimeError(
                f"x, h0, c0 and weights must share one dtype and device, got {dtype} on {device} for h0 and "
                f"{tensor.dtype} on {tensor.device} beside it: convert with .to()"
            )
    if x.dtype == torch.int64:
        if x.dim() != 1:
            raise RuntimeError(f"x must be ids [N], got {list(x.shape)}")
        _check_ids(x, I)
    elif x.dim() != 2 or x.shape[1] != I:
        raise RuntimeError(f"x must be [N, I] with I = {I}, got {list(x.shape)}")
    if batch_sizes is not None:
        _check_batch_sizes(batch_sizes, x.shape[0], B)
    elif x.shape[0] % B if B else x.shape[0]:
        raise RuntimeError(f"x must have T*B rows with B = {B}, got {x.shape[0]}")
    if fresh is not None:
        _check_fresh(fresh, D, x.shape[0], device, backend)


def check_saved(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, h0: Tensor, c0: Tensor, y: Tensor, c: Tensor,
    gates: Tensor, N: int,
) -> None:  # fmt: skip
    """Raises RuntimeError unless what the backward reads has the shapes and dtypes that the forward gave."""
    (D, _, P), H = h0.shape, c0.shape[2]
    if N and not gates.numel():
        raise RuntimeError("c and gates must be those of layer_fwd with save=True, got empty ones: run it so")
    for name, tensor, shape, dtype in (
        ("dy", dy, (N, D * P), h0.dtype),
        ("dh_n", dh_n, h0.shape, h0.dtype),
        ("dc_n", dc_n, c0.shape, h0.dtype),
        ("y", y, (N, D * P), h0.dtype),
        ("c", c, (D, N, H), accumulation(h0.dtype)),
        ("gates", gates, (D, N, 4 * H), h0.dtype),
    ):
        if tensor is not None and (
            tensor.shape != shape or tensor.dtype != dtype or tensor.device != h0.device
        ):
            raise RuntimeError(
                f"{name} must be {list(shape)} of {dtype} on {h0.device}, "
                f"got {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            )


@functools.lru_cache(maxsize=256)
def _weight_shapes(I: int, H: int, P: int, D: int, count: int) -> list[tuple[int, ...]]:  # noqa: E741
    """The shapes of all weights, with biases or without, as their number tells."""
    projection: list[tuple[int, ...]] = [(P, H)] if P != H else []
    without_bias: list[tuple[int, ...]] = [(4 * H, I), (4 * H, P), *projection]
    with_bias: list[tuple[int, ...]] = [(4 * H, I), (4 * H, P), (4 * H,), (4 * H,), *projection]
    for shapes in (without_bias, with_bias):
        if count == D * len(shapes):
            return D * shapes
    raise RuntimeError(
        f"weights must be {len(without_bias)}, or {len(with_bias)} with biases, for each of D = {D} "
        f"directions with H = {H} and P = {P}, got {count}"
    )


def _raise_wrong_shape(shapes: list[tuple[int, ...]], weights: Sequence[Tensor], projection: bool) -> None:
    spelled = {"w_ih": "[4*H, I]", "w_hh": "[4*H, P]", "b_ih": "[4*H]", "b_hh": "[4*H]", "w_hr": "[P, H]"}
    biases = any(len(shape) == 1 for shape in shapes)
    names = [n for n in spelled if (biases or n[0] != "b") and (projection or n != "w_hr")]
    for k, (w, shape) in enumerate(zip(weights, shapes, strict=True)):
        if w.shape != shape:
            name = names[k % len(names)]
            raise RuntimeError(f"{name} must be {spelled[name]} = {list(shape)}, got {list(w.shape)}")


def _check_ids(ids: Tensor, I: int) -> None:  # noqa: E741
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= I:
            raise IndexError(f"ids must be in 0 <= id < I = {I}, got {low if low < 0 else high}")


def _check_fresh(fresh: Tensor, D: int, N: int, device: torch.device, backend: str) -> None:
    if not takes_resets(backend):
        raise RuntimeError(f"fresh must be None for backend={backend!r}, which takes no reset masks")
    if fresh.shape != (D, N) or fresh.dtype != torch.bool or fresh.device != device:
        raise RuntimeError(
            f"fresh must be [D, N] = {[D, N]} of torch.bool on {device}, "
            f"got {list(fresh.shape)} of {fresh.dtype} on {fresh.device}"
        )


def _check_batch_sizes(batch_sizes: Tensor, N: int, B: int) -> None:
    if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu" or batch_sizes.dim() != 1:
        raise RuntimeError(
            f"batch_sizes must be int64 [T] on the CPU, got {list(batch_sizes.shape)} of {batch_sizes.dtype} "
            f"on {batch_sizes.device}"
        )
    sizes = batch_sizes.tolist()
    if not sizes or sizes[0] != B or sizes[-1] < 1 or sum(sizes) != N or sizes != sorted(sizes, reverse=True):
        raise RuntimeError(
            f"batch_sizes must fall from B = {B} to at least 1 and add up to the {N} rows, "
            f"got {len(sizes)} sizes from {sizes[:1]} to {sizes[-1:]} of sum {sum(sizes)}"
        )
