"""Gives existing models and modules over to fusedlstm, and says what runs."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .backends import check_name, reasons
from .functional import cell_backend, spec
from .nn import LSTM, LSTMCell

M = TypeVar("M", bound=torch.nn.Module)
_OURS: dict[type, type[torch.nn.Module]] = {torch.nn.LSTM: LSTM, torch.nn.LSTMCell: LSTMCell}


def convert(model: M, *, backend: str = "auto") -> M:
    """Replaces every torch.nn.LSTM and LSTMCell in a model by ours, which shares its parameters and hooks.

    Modules inside others are replaced in place; a model that is itself an LSTM comes back as a new module.
    What shares a module before shares it after. Subclasses of torch's modules are left alone: they may
    compute something else.

    Args:
        model: any module.
        backend: of the new modules: "auto", or the name of one.

    Returns:
        The model; nothing changes in one that was converted before.
    """
    check_name(backend)
    done: dict[torch.nn.Module, torch.nn.Module] = {}
    # Two names for one module: modules() and named_children() would give only the first.
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = _converted(child, backend, done)
    return _converted(model, backend, done)  # type: ignore[return-value]


def explain(
    module: LSTM | LSTMCell, x: Tensor | PackedSequence, resets: Tensor | PackedSequence | None = None
) -> str:
    """Says which backend runs for an input, and why each other does not.

    Args:
        module: an LSTM or LSTMCell of fusedlstm.
        x: an input as its forward takes it; only its shape and dtype count.
        resets: as its forward takes them; only whether there are any counts.

    Returns:
        One line for the call and one for each backend.

    Raises:
        TypeError: the module is not one of fusedlstm's.
    """
    if not isinstance(module, (LSTM, LSTMCell)):
        raise TypeError(
            f"module must be a fusedlstm.LSTM or LSTMCell, got {type(module).__name__}: convert() it first"
        )
    rows = x.data if isinstance(x, PackedSequence) else x
    ids = not rows.is_floating_point()
    backend = module.backend
    if isinstance(module, LSTMCell):
        backend = cell_backend(backend, module.weight_ih, ids)
        weights = [
            w for w in (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh) if w is not None
        ]
        T, B = 1, rows.shape[0] if rows.dim() == 2 - ids else 1
    else:
        weights = [getattr(module, name) for name in module._flat_weights_names]
        if isinstance(x, PackedSequence):
            T, B = len(x.batch_sizes), int(x.batch_sizes[0])
        elif x.dim() == 2 - ids:
            T, B = x.shape[0], 1
        else:
            B, T = x.shape[:2] if module.batch_first else (x.shape[1], x.shape[0])
    L, bidirectional = getattr(module, "num_layers", 1), getattr(module, "bidirectional", False)
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (rows, *weights))
    packed = isinstance(x, PackedSequence)
    recompute = getattr(module, "recompute", False)
    asked = spec(
        weights, T, B, module.bias, L, bidirectional, ids, packed, grad, resets is not None, recompute
    )
    names = ("bias", "ids", "packed", "grad", "resets", "recompute")
    options = [name for name in names if getattr(asked, name)]
    sizes = " ".join(f"{name}={getattr(asked, name)}" for name in ("T", "B", "I", "H", "P", "D", "L"))
    lines = [f"{type(module).__name__}: {str(asked.dtype).removeprefix('torch.')} on {asked.device}, {sizes}"]
    lines[0] += f" ({', '.join(options)})" if options else ""
    return "\n".join(lines + [f"  {name:6} {reason}" for name, reason in reasons(asked, backend).items()])


def _converted(
    module: torch.nn.Module, backend: str, done: dict[torch.nn.Module, torch.nn.Module]
) -> torch.nn.Module:
    cls = _our_class(module)
    if cls is None:
        return module
    if module not in done:
        new = done[module] = torch.nn.Module.__new__(cls)
        # Hooks stay one dict for both, so that handles of before still remove them.
        new.__dict__.update(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules", "_flat_weights"):
            if name in module.__dict__:
                new.__dict__[name] = module.__dict__[name].copy()
        new.__dict__["backend"] = backend
    return done[module]


def _our_class(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    cls = type(module)
    if cls in _OURS:
        return _OURS[cls]
    if torch.nn.utils.parametrize.is_parametrized(module) and cls.__bases__[0] in _OURS:
        # Parametrized tensors are properties of a class made for this one module: make its like over ours.
        body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        return type(cls.__name__, (_OURS[cls.__bases__[0]],), body)
    return None
