"""The registry of backends: which of them can serve a call, and which one does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch

# What `auto` tries, first to last. A backend whose module defines `slower` may still yield its place to torch.
ORDER = {"cpu": ("cpu", "torch", "eager")}
ORDER_ELSEWHERE = ("torch", "eager")
NAMES = ("cpu", "torch", "eager")


@dataclass(frozen=True)
class Spec:
    """What a call asks of a backend: where it runs, its sizes and its options.

    Args:
        device: torch device type, such as "cpu" or "cuda".
        dtype: storage dtype of states and weights (after autocast).
        T: steps. B: sequences. I: input width of the first layer. H: hidden units.
        P: width of h (proj_size, or H without projection). D: directions. L: layers.
        bias: the weights include biases.
        ids: the input is int64 ids, standing for one-hot rows of width I.
        packed: sequences differ in length.
        grad: a backward pass may follow.
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


_loaded: dict[str, ModuleType | str] = {}


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype of c and of a backend's arithmetic for a storage dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _import(name: str) -> ModuleType | str:
    """The backend's module, or why it cannot be imported here."""
    if name not in _loaded:
        try:
            _loaded[name] = importlib.import_module(f"{__name__}.{name}")
        except ImportError as error:
            _loaded[name] = f"not available here: {error.name or error} is missing"
    return _loaded[name]


def load(name: str) -> ModuleType:
    """The module of a backend that is known to import."""
    module = _import(name)
    if isinstance(module, str):
        raise ValueError(f"backend={name!r} is {module}")
    return module


def why_not(name: str, spec: Spec) -> str | None:
    """Why the backend cannot serve the call, or None when it can."""
    if name == "torch":
        return "torch's LSTM takes no ids: give it one-hot rows" if spec.ids else None
    module = _import(name)
    return module if isinstance(module, str) else module.supports(spec)


def slower(name: str, spec: Spec) -> str | None:
    """Why `auto` hands the call to torch although the backend could serve it, or None when it does not."""
    if name == "torch" or spec.ids:
        return None
    module = _import(name)
    return module.slower(spec) if hasattr(module, "slower") else None


def order(device: str) -> tuple[str, ...]:
    """The backends that `auto` tries on a device, first to last."""
    return ORDER.get(device, ORDER_ELSEWHERE)


def resolve(spec: Spec, backend: str) -> str:
    """Returns the name of the backend that serves the call.

    Args:
        spec: what the call asks for.
        backend: "auto", or one of NAMES, which then serves the call or raises.

    Raises:
        ValueError: no such backend, or it cannot serve the call.
    """
    if backend == "auto":
        for name in order(spec.device):
            if why_not(name, spec) is None and slower(name, spec) is None:
                return name
        raise ValueError(f"no backend serves {spec}: {explain(spec)}")
    if backend not in NAMES:
        raise ValueError(f"backend must be 'auto' or one of {NAMES}, got {backend!r}")
    reason = why_not(backend, spec)
    if reason is not None:
        raise ValueError(f"backend={backend!r} cannot serve this call: {reason}. backend='auto' picks one that can.")
    return backend


def backends() -> dict[str, str | None]:
    """Every backend's name, with None where it can be used here, else the reason why not."""
    found = {name: None if name == "torch" else _import(name) for name in NAMES}
    return {name: module if isinstance(module, str) else None for name, module in found.items()}
