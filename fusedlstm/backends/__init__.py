"""The registry of backends: which of them can serve a call, and which one does.

A backend is a module beside this one with `supports(spec)`, `layer_forward` and `layer_backward`, imported
when it is first asked for. Optional are `unavailable()`: why it can serve no call on this machine;
`slower(spec)`: where torch was measured faster; `kernel(spec)`: what would run; `RESETS = True`: the layer's
two functions take reset masks as a last argument; `generator(stack, B, precision, seed)`: what writes text,
see fusedlstm.generate. "torch" is no module: it stands for torch's own LSTM, to which fusedlstm.functional
hands the whole stack of layers.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("cpu", "cuda", "triton", "torch", "eager")
_ORDER = {"cpu": ("cpu", "torch", "eager")}
_ORDER_ELSEWHERE = ("torch", "eager")
_modules: dict[str, ModuleType] = {}
_reasons: dict[str, str] = {}


@dataclass(frozen=True)
class Spec:
    """What a call asks of a backend: where it runs, its sizes and its options.

    Args:
        device: torch device type, such as "cpu" or "cuda".
        dtype: storage dtype of states and weights (after autocast).
        T: steps. B: sequences. I: input width of the first layer. H: hidden units.
        P: width of h (proj_size, or H without projection). D: directions. L: layers.
        bias: the weights include biases.
        ids: the input is int64 ids, which stand for one-hot rows of width I.
        packed: sequences may differ in length.
        grad: a backward pass may follow.
        resets: sequences may start anew in the middle.
        unreadable: it cannot be looked up where: see fusedlstm.resets.
        recompute: the backward makes the gates again instead of keeping them.
    """

    device: str
    dtype: torch.dtype
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    P: int
    D: int = 1
    L: int = 1
    bias: bool = True
    ids: bool = False
    packed: bool = False
    grad: bool = False
    resets: bool = False
    unreadable: bool = False
    recompute: bool = False


class Stack(NamedTuple):
    """What a writer writes with: float32, contiguous, on one device.

    Args:
        table: what an id adds to the gates of layer 0, its biases included [V, 4H].
        weights: w_hh of layer 0, then w_ih and w_hh of every other layer [2L-1, 4H, H].
        biases: of every other layer, b_ih + b_hh [L-1, 4H].
        decoder: from h of the last layer to logits [V, H].
        decoder_bias: [V].
    """

    table: Tensor
    weights: Tensor
    biases: Tensor
    decoder: Tensor
    decoder_bias: Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, V and H."""
        V, H = self.decoder.shape
        return len(self.biases) + 1, V, H


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype of c and of a backend's arithmetic for a storage dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def load(name: str) -> ModuleType:
    """Returns a backend's module, or raises ValueError with the reason why it cannot be imported here."""
    reason = _missing(name)
    if reason is not None:
        raise ValueError(f"backend={name!r} is {reason}")
    return _modules[name]


def backends() -> dict[str, str | None]:
    """Returns every backend's name, with None where it can be used here, else the reason why not."""
    return {name: None if name == "torch" else _missing(name) for name in NAMES}


def check_name(backend: str) -> None:
    """Raises ValueError unless it is "auto" or the name of a backend."""
    if backend != "auto" and backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(('auto', *NAMES))}, got {backend!r}")


def resolve(spec: Spec, backend: str) -> str:
    """Returns the name of the backend that serves a call.

    Args:
        spec: what the call asks for.
        backend: "auto", or the name of the backend that must serve it.

    Raises:
        ValueError: no such backend, or it cannot serve the call.
    """
    check_name(backend)
    if backend == "auto":
        for name in _candidates(spec.device):
            if why_not(spec, name) is None and _slower(spec, name) is None:
                return name
        raise ValueError(
            "no backend serves this call: " + "; ".join(f"{n}: {r}" for n, r in reasons(spec).items())
        )
    reason = why_not(spec, backend)
    if reason is not None:
        raise ValueError(
            f"backend={backend!r} cannot serve this call: {reason}. backend='auto' takes one that can"
        )
    return backend


def why_not(spec: Spec, name: str) -> str | None:
    """Returns why a backend cannot serve a call, or None when it can."""
    reason: str | None
    if name == "torch" and spec.recompute and spec.grad:
        reason = "torch's LSTM keeps its gates for the backward, which recompute=True forbids"
    elif name == "torch":
        reason = "torch's LSTM takes no ids; give it one-hot rows" if spec.ids else None
    else:
        reason = _missing(name) or _modules[name].supports(spec)
    if reason is None and spec.unreadable and not takes_resets(name):
        reason = (
            "takes no reset masks, and sequences cannot be cut while resets have no values to read "
            "(torch.compile, vmap over them, the meta device)"
        )
    return reason


def takes_resets(name: str) -> bool:
    """Whether a backend that is here takes reset masks."""
    return name != "torch" and getattr(_modules[name], "RESETS", False)


def kernel(spec: Spec, name: str) -> str | None:
    """Returns what a backend would run for a call, in its own words; None where it does not tell."""
    if name == "torch":
        return None
    module = load(name)
    return module.kernel(spec) if hasattr(module, "kernel") else None


def reasons(spec: Spec, backend: str = "auto") -> dict[str, str]:
    """Returns for every backend either "runs" or why it does not."""
    found: dict[str, str] = {}
    chosen: str | None = None
    candidates = _candidates(spec.device) if backend == "auto" else (backend,)
    for name in (*candidates, *(n for n in NAMES if n not in candidates)):
        reason = why_not(spec, name)
        if reason is None and name not in candidates:
            reason = (
                f"auto does not try it on {spec.device}"
                if backend == "auto"
                else f"{backend!r} was asked for"
            )
        if reason is None and backend == "auto":
            reason = _slower(spec, name)
        if reason is None and chosen is not None:
            reason = f"could serve, but {chosen!r} comes first"
        if reason is None:
            chosen = name
        found[name] = reason or "runs"
    return found


def _candidates(device: str) -> tuple[str, ...]:
    names = _ORDER.get(device, _ORDER_ELSEWHERE)
    # torch.compile cannot differentiate torch's own LSTM; an op of ours goes through whole.
    return tuple(n for n in names if n != "torch") if torch.compiler.is_compiling() else names


def _slower(spec: Spec, name: str) -> str | None:
    """Where torch can take the call and was measured faster: the backend's own words for it."""
    if name == "torch" or why_not(spec, "torch") is not None or torch.compiler.is_compiling():
        return None
    module = _modules[name]
    return module.slower(spec) if hasattr(module, "slower") else None


def _missing(name: str) -> str | None:
    """Why a backend cannot be used here, or None, and then its module is in _modules."""
    if name not in _modules and name not in _reasons:
        try:
            _modules[name] = importlib.import_module(f"{__name__}.{name}")
        except ImportError as error:
            _reasons[name] = f"not available here: {error.msg.partition(' (')[0]}"
    if name in _reasons:
        return _reasons[name]
    unavailable = getattr(_modules[name], "unavailable", None)
    return unavailable() if unavailable else None


# Tracing must not enter imports. torch.compiler.assume_constant_result does this, but imports the compiler.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
