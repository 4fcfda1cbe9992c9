"""Who is measured on which device: fusedlstm, and torch.nn.LSTM in both of its settings; and one pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedlstm
from benchmarks.shapes import INFER, TRAIN, Row
from fusedlstm.backends import Spec, why_not

Context = Callable[[], AbstractContextManager[Any]]
without_onednn: Context = partial(torch.backends.mkldnn.flags, enabled=False, allow_tf32=None)
without_cudnn: Context = partial(torch.backends.cudnn.flags, enabled=False)


def takes_all(row: Row) -> str:
    """Refuses nothing. A function and no lambda: contenders are sent to other processes."""
    return ""


def as_it_is(module: Any) -> Any:
    return module


def unserved(device: str, backend: str, row: Row) -> str:
    """Why a backend of ours cannot take a row, or nothing."""
    return why_not(asked(row, device), backend) or ""


@dataclass(frozen=True)
class Contender:
    """An LSTM module and the setting in which it runs.

    Args:
        title: in words.
        lstm: makes the module: torch.nn.LSTM's arguments, parameters and results.
        context: the setting.
        device: "cpu" or "cuda".
        refuses: why it cannot take a row, or nothing.
        wrap: what is called in place of the module.
        setup_seconds: that it may take to compile before it runs for the first time.
    """

    title: str
    lstm: Callable[..., torch.nn.LSTM]
    context: Context = nullcontext
    device: str = "cpu"
    refuses: Callable[[Row], str] = takes_all
    wrap: Callable[[Any], Any] = as_it_is
    setup_seconds: float = 0.0


def asked(row: Row, device: str) -> Spec:
    """What a row asks of a backend."""
    sizes = {"T": row.T, "B": row.B, "I": row.I, "H": row.H, "P": row.H, "D": row.D, "L": row.L}
    return Spec(device, row.torch_dtype, **sizes, grad=row.mode != INFER)


def _own(device: str, *backends: str) -> dict[str, Contender]:
    """Ours on a device: the first backend is "ours", a further one "ours:NAME".

    By name: "auto" would hide a loss by handing the shape to torch.
    """
    return {
        "ours" if backend == backends[0] else f"ours:{backend}": Contender(
            f"fusedlstm, {backend}",
            partial(fusedlstm.LSTM, backend=backend),
            device=device,
            refuses=partial(unserved, device, backend),
        )
        for backend in backends
    }


CONTENDERS = _own("cpu", "cpu") | {
    "torch": Contender("torch.nn.LSTM", torch.nn.LSTM),
    "torch_plain": Contender("torch.nn.LSTM, oneDNN off", torch.nn.LSTM, without_onednn),
}
ON = {
    "cpu": CONTENDERS,
    "cuda": _own("cuda", "triton", "cuda")
    | {
        "torch": Contender("torch.nn.LSTM, cuDNN", torch.nn.LSTM, device="cuda"),
        "torch_plain": Contender("torch.nn.LSTM, cuDNN off", torch.nn.LSTM, without_cudnn, "cuda"),
    },
}


class Pass:
    """One pass of a contender over a row's data, the same data for every contender and dtype.

    Args:
        row: shape and mode.
        contender: whose module.
        dtype: to compute in, when it is not the row's; the data are those of the row's dtype.
    """

    def __init__(self, row: Row, contender: Contender, dtype: torch.dtype | None = None) -> None:
        random = torch.Generator().manual_seed(1)

        def data(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=random) * scale
            return values.to(row.torch_dtype).to(contender.device, dtype or row.torch_dtype)

        self.row = row
        self.context = contender.context
        self.module = contender.lstm(
            row.I,
            row.H,
            row.L,
            bidirectional=row.bidirectional,
            dtype=dtype or row.torch_dtype,
            device=contender.device,
        ).train(row.mode != INFER)
        self.call = contender.wrap(self.module)
        with torch.no_grad():
            for weight in self.module.parameters():
                weight.copy_(data(*weight.shape, scale=0.6 * row.H**-0.5))  # about torch's own start
        self.x = data(row.T, row.B, row.I).requires_grad_(row.mode == TRAIN and row.needs_dx)
        self.dy = data(row.T, row.B, row.D * row.H)
        self.leaves = [self.x, *self.module.parameters()]

    def __call__(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs it; gradients are then in the leaves."""
        if self.row.mode == INFER:
            with torch.no_grad():
                return self.call(self.x)
        for leaf in self.leaves:
            leaf.grad = None
        y, states = self.call(self.x)
        if self.row.mode == TRAIN:
            y.backward(self.dy)
        return y, states

    def results(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Runs it once: outputs and gradients by name, in float64."""
        with self.context():
            y, (h_n, c_n) = self()
        outputs = {"y": y, "h_n": h_n, "c_n": c_n}
        names = ("x", *(name for name, _ in self.module.named_parameters()))
        grads = {f"d{n}": t.grad for n, t in zip(names, self.leaves, strict=True) if t.grad is not None}
        return _doubles(outputs), _doubles(grads)

    def saved_bytes(self) -> int:
        """Runs a forward and returns the bytes kept for the backward, beyond input, states and weights."""
        kept: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        state = self.x.new_zeros(self.row.L * self.row.D, self.row.B, self.row.H).detach()
        with self.context(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            # What it returns holds the saved tensors, so that no address is used twice.
            alive = self.module(self.x, (state, state))
        own = {t.untyped_storage().data_ptr() for t in (state, *self.leaves)}
        del alive
        return sum(size for address, size in kept.items() if address not in own)


def failure(error: Exception) -> str:
    """What went wrong, in a line of bounded length."""
    lines = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}: {lines[0] if lines else 'it said nothing'}"[:300]


def shortened(row: Row) -> Row:
    """The row with a fiftieth of its steps, to find out what is too slow to be run whole."""
    return replace(row, T=-(-row.T // 50))


def _doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().double() for name, t in tensors.items()}
