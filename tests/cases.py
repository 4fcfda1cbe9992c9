"""The table of shapes and options that every backend is tested on, and the one tolerance."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedlstm
from fusedlstm import reference
from fusedlstm.backends import Spec, why_not

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
BACKENDS = [name for name, reason in fusedlstm.backends().items() if reason is None]


@dataclass(frozen=True)
class Case:
    """One shape and its options, as torch.nn.LSTM names them."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    bias: bool = True
    bi: bool = False
    proj: int = 0
    packed: str = ""  # "", "sorted" or "unsorted"
    ids: bool = False
    batch_first: bool = False
    hx: bool = True
    strided: bool = False
    resets: bool = False

    @property
    def D(self) -> int:
        return 2 if self.bi else 1

    @property
    def P(self) -> int:
        return self.proj or self.H

    @property
    def lengths(self) -> list[int]:
        """Steps of each sequence, the longest of which has T; sorted ones fall."""
        if not self.packed:
            return [self.T] * self.B
        lengths = sorted((1 + (5 * b + self.T - 1) % self.T for b in range(self.B)), reverse=True)
        return lengths if self.packed == "sorted" else lengths[1:] + lengths[:1]

    @property
    def borders(self) -> list[list[int]]:
        """The steps at which each sequence starts anew: all kinds by turns."""
        kinds = [
            lambda n: {0, n // 2, n - 1},
            lambda n: set(),
            lambda n: {n - 1},
            lambda n: {1, 2, 3} & set(range(n)),  # several in a row
            lambda n: set(range(n)),
        ]
        return [sorted(kinds[b % 5](n)) if self.resets else [] for b, n in enumerate(self.lengths)]

    def options(self) -> dict[str, Any]:
        return {
            "num_layers": self.L, "bias": self.bias, "bidirectional": self.bi, "proj_size": self.proj,
            "batch_first": self.batch_first,
        }  # fmt: skip

    def spec(self, dtype: torch.dtype) -> Spec:
        return Spec(
            "cpu", dtype, self.T, self.B, self.I, self.H, self.P, self.D, self.L, self.bias, self.ids,
            bool(self.packed), True, self.resets,
        )  # fmt: skip

    def __str__(self) -> str:
        flags = {
            f"L{self.L}": self.L > 1, "nobias": not self.bias, "bi": self.bi, f"proj{self.proj}": self.proj,
            self.packed: self.packed, "ids": self.ids, "batchfirst": self.batch_first, "nohx": not self.hx,
            "strided": self.strided, "resets": self.resets,
        }  # fmt: skip
        return "-".join(
            [f"T{self.T}-B{self.B}-I{self.I}-H{self.H}", *(name for name, on in flags.items() if on)]
        )


CASES = [
    Case(1, 1, 1, 1),
    Case(1, 1, 4, 16, hx=False),
    Case(1, 17, 5, 33),
    Case(2, 1, 3, 3),
    Case(2, 2, 16, 64),
    Case(2, 5, 64, 100),
    Case(7, 5, 9, 33),
    Case(7, 17, 12, 16),
    Case(33, 1, 7, 100),
    Case(33, 2, 33, 64),
    Case(33, 17, 20, 100, hx=False),
    Case(1100, 2, 3, 5),
    Case(7, 5, 9, 33, bias=False),
    # Many sequences: of two numbers torch may get both right by luck, and twice nothing is nothing.
    Case(7, 17, 3, 1, L=2, bias=False),
    Case(7, 5, 6, 16, L=2),
    Case(33, 2, 5, 33, L=3),
    Case(7, 5, 9, 33, bi=True),
    Case(33, 17, 8, 16, bi=True, bias=False),
    Case(7, 2, 5, 64, L=2, bi=True),
    Case(1, 5, 4, 3, bi=True),
    Case(7, 5, 6, 16, batch_first=True),
    Case(7, 5, 6, 16, L=2, bi=True, batch_first=True, strided=True),
    Case(7, 5, 9, 33, strided=True),
    Case(7, 5, 9, 33, packed="sorted"),
    Case(33, 17, 5, 16, packed="unsorted"),
    Case(7, 5, 6, 33, bi=True, packed="unsorted"),
    Case(7, 17, 5, 16, L=2, bi=True, packed="sorted", hx=False),
    Case(33, 1, 4, 3, bias=False, packed="sorted"),
    Case(7, 5, 9, 33, ids=True),
    Case(33, 17, 65, 64, ids=True, bias=False),
    Case(7, 5, 12, 16, L=2, bi=True, ids=True),
    Case(7, 5, 9, 33, ids=True, packed="unsorted"),
    Case(7, 5, 9, 33, proj=5),
    Case(33, 2, 5, 16, L=2, bi=True, proj=3),
    Case(7, 5, 9, 33, bias=False, proj=32, packed="unsorted"),
    Case(1, 5, 4, 3, bi=True, resets=True),
    Case(33, 1, 7, 16, resets=True),
    Case(7, 17, 9, 33, resets=True),
    Case(7, 5, 5, 33, L=2, bi=True, resets=True),
    Case(7, 5, 6, 16, L=2, bi=True, batch_first=True, strided=True, resets=True),
    Case(7, 5, 9, 33, hx=False, resets=True),
    Case(33, 17, 5, 16, packed="unsorted", resets=True),
    Case(7, 17, 6, 33, bi=True, packed="sorted", resets=True),
    Case(7, 5, 12, 16, L=2, bi=True, ids=True, resets=True),
    Case(7, 5, 9, 33, ids=True, bias=False, packed="unsorted", resets=True),
    Case(7, 5, 9, 33, bi=True, proj=5, packed="unsorted", resets=True),
]


def served(backends: Sequence[str] = BACKENDS, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[tuple]:
    """Every case with every backend and dtype that serves it."""
    for backend in backends:
        for dtype in dtypes:
            for case in CASES:
                if why_not(case.spec(dtype), backend) is None:
                    yield backend, dtype, case


@dataclass(frozen=True)
class Data:
    """What one case computes on, already rounded to its dtype; sequences are padded, [T, B, ...]."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    weights: dict[str, Tensor]
    dy: Tensor
    dh_n: Tensor
    dc_n: Tensor
    resets: Tensor

    def to(self, device: torch.device) -> Data:
        """The same on a device."""
        tensors = {name: t.to(device) for name, t in vars(self).items() if name != "weights"}
        return Data(weights={name: w.to(device) for name, w in self.weights.items()}, **tensors)


@functools.cache
def data(case: Case, dtype: torch.dtype) -> Data:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    module = torch.nn.LSTM(case.I, case.H, **case.options())
    weights = {name: normal(*w.shape) / case.H**0.5 for name, w in module.named_parameters()}
    states = case.L * case.D
    resets = torch.zeros(case.T, case.B, dtype=torch.bool)
    for b, (steps, length) in enumerate(zip(case.borders, case.lengths, strict=True)):
        resets[steps, b] = True
        resets[length:, b] = case.resets  # where a sequence has ended nothing starts
    ids = torch.randint(case.I, (case.T, case.B), generator=random)
    # A scale of each its own, so that no gradient hides behind a larger one.
    return Data(
        ids if case.ids else normal(case.T, case.B, case.I), normal(states, case.B, case.P) * case.hx,
        normal(states, case.B, case.H) * case.hx, weights, normal(case.T, case.B, case.D * case.P), 2 *
        normal(states, case.B, case.P), 3 * normal(states, case.B, case.H), resets,
    )  # fmt: skip


Results = dict[str, np.ndarray]


@functools.cache
def exact(case: Case, dtype: torch.dtype) -> Results:
    """The float64 reference on the case's data."""
    d = data(case, dtype)
    x, h0, c0, dy, dh_n, dc_n, *weights = (
        t.numpy() if t.dtype == torch.int64 else t.double().numpy()
        for t in (d.x, d.h0, d.c0, d.dy, d.dh_n, d.dc_n, *d.weights.values())
    )
    result = reference.forward(
        x, weights, h0, c0, num_layers=case.L, bias=case.bias, bidirectional=case.bi, lengths=case.lengths,
        resets=d.resets.numpy(),
    )  # fmt: skip
    dx, dh0, dc0, dweights = reference.backward(result, dy, dh_n, dc_n)
    found = {"y": result.y, "h_n": result.h_n, "c_n": result.c_n}
    found |= {} if dx is None else {"dx": dx}
    found |= {"dh0": dh0, "dc0": dc0} if case.hx else {}
    return found | {f"d{name}": dw for name, dw in zip(d.weights, dweights, strict=True)}


@functools.cache
def torchs(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[Results]:
    """torch.nn.LSTM on the case's data, ids as one-hot rows; in float32 on a CPU with oneDNN and without.

    Which of the two is nearer to the truth depends on the processor; what ours may be off must not.
    """
    found = []
    for onednn in (True, False) if device == "cpu" and dtype == torch.float32 else (True,):
        with torch.backends.mkldnn.flags(enabled=onednn, allow_tf32=None):
            module = torch.nn.LSTM(case.I, case.H, **case.options(), dtype=dtype, device=device)
            found.append(run(module, case, one_hot=True))
    return found


def ours(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu") -> Results:
    """fusedlstm.LSTM on the case's data."""
    options: dict[str, Any] = {**case.options(), "dtype": dtype, "device": device, "backend": backend}
    return run(fusedlstm.LSTM(case.I, case.H, **options), case)


def run(module: torch.nn.LSTM, case: Case, one_hot: bool = False) -> Results:
    """Forward and backward of a module with the case's weights: outputs and gradients by name, padded."""
    weight = module.weight_ih_l0
    d = data(case, weight.dtype).to(weight.device)
    module.load_state_dict(d.weights)
    x = torch.nn.functional.one_hot(d.x, case.I).to(d.h0.dtype) if case.ids and one_hot else d.x
    leaves = {"x": x, "h0": d.h0, "c0": d.c0}
    leaves = {k: t.clone().requires_grad_(t.is_floating_point()) for k, t in leaves.items()}
    x, h0, c0, dy = leaves["x"], leaves["h0"], leaves["c0"], d.dy
    if case.strided:
        x, h0, c0, dy = (_strided(t) for t in (x, h0, c0, dy))
    if case.resets and not isinstance(module, fusedlstm.LSTM):
        y, (h_n, c_n) = _piece_by_piece(module, case, x, h0, c0)
    else:
        given = [_laid_out(case, t) for t in ([x, d.resets] if case.resets else [x])]
        y, (h_n, c_n) = module(given[0], (h0, c0) if case.hx else None, *given[1:])
        if isinstance(y, PackedSequence):
            y = pad_packed_sequence(y)[0]
        y = y.transpose(0, 1) if case.batch_first else y
    torch.autograd.backward([y, h_n, c_n], [dy, d.dh_n, d.dc_n])
    found = {"y": y, "h_n": h_n, "c_n": c_n}
    found |= {} if case.ids else {"dx": leaves["x"].grad}
    found |= {"dh0": leaves["h0"].grad, "dc0": leaves["c0"].grad} if case.hx else {}
    found |= {f"d{name}": w.grad for name, w in module.named_parameters()}
    assert all(t is not None and t.dtype == d.h0.dtype for t in found.values())
    return {name: t.detach().double().cpu().numpy() for name, t in found.items()}


def _laid_out(case: Case, t: Tensor) -> Any:
    """What a module takes, from [T, B, ...]."""
    if case.packed:
        return pack_padded_sequence(t, torch.tensor(case.lengths), enforce_sorted=case.packed == "sorted")
    t = _strided(t) if case.strided and t.dtype == torch.bool else t
    return t.transpose(0, 1) if case.batch_first else t


def _piece_by_piece(
    module: torch.nn.LSTM, case: Case, x: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A module without resets over every piece of every sequence alone."""
    reverse = (torch.arange(case.L * case.D, device=x.device) % case.D == 1)[:, None]
    zero_h, zero_c = torch.zeros_like(h0[:, 0]), torch.zeros_like(c0[:, 0])
    ys, ends = [], []
    for b, (steps, length) in enumerate(zip(case.borders, case.lengths, strict=True)):
        bounds = sorted({0, *steps, length})
        y_b, h_b, c_b = [], zero_h, zero_c
        for first, end in itertools.pairwise(bounds):
            # Which directions begin here from the given states, and which end here.
            begins = torch.where(reverse, end == length, first == 0 and 0 not in steps)
            stops = torch.where(reverse, first == 0, end == length)
            hx = torch.where(begins, h0[:, b], zero_h), torch.where(begins, c0[:, b], zero_c)
            y, (h, c) = module(x[first:end, b], hx)
            y_b.append(y)
            h_b, c_b = torch.where(stops, h, h_b), torch.where(stops, c, c_b)
        ys.append(torch.nn.functional.pad(torch.cat(y_b), (0, 0, 0, case.T - length)))
        ends.append((h_b, c_b))
    h_n, c_n = (torch.stack(states, 1) for states in zip(*ends, strict=True))
    return torch.stack(ys, 1), (h_n, c_n)


def assert_close(
    found: Results, case: Case, dtype: torch.dtype, device: str = "cpu", roundings: int = 1
) -> None:
    """Raises unless all results are as near to the reference as torch's: twice its error and one rounding.

    Errors are relative to the largest value of the tensor. torch's is the largest of all outputs, for an
    output, and of all gradients, for a gradient: in a tensor of two numbers it may be right by luck.
    """
    truth = exact(case, dtype)
    assert found.keys() == truth.keys()
    for names in ({"y", "h_n", "c_n"}, truth.keys() - {"y", "h_n", "c_n"}):
        torch_error = max(_error(t[name], truth[name]) for t in torchs(case, dtype, device) for name in names)
        # The reference rounds too: 1e-14 is more than it was seen to be off.
        allowed = 2 * torch_error + max(roundings * torch.finfo(dtype).eps, 1e-14)
        for name in names:
            error = _error(found[name], truth[name])
            assert error <= allowed, (
                f"{name} is off by {error:.3g} of its largest value, allowed {allowed:.3g}"
            )


def _error(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape, f"shape {found.shape}, not {truth.shape}"
    scale = np.abs(truth).max()
    return float(np.abs(found - truth).max() / (scale or 1.0))


def _strided(t: Tensor) -> Tensor:
    """The same values, with gaps between them in memory."""
    return torch.stack((t, torch.full_like(t, float("nan"))), -1)[..., 0]
