"""The backend "cuda" without a GPU and without its extension."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

import fusedlstm


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> ModuleType:
    """Lets fusedlstm.backends.cuda, imported anew, take CPU tensors to the module as if it were on an H100.

    Args:
        monkeypatch: undoes it.
        module: of build_module.

    Returns:
        The backend.
    """
    registry = importlib.import_module("fusedlstm.backends")
    monkeypatch.setitem(sys.modules, "fusedlstm._cuda", module)
    monkeypatch.setattr(fusedlstm, "_cuda", module, raising=False)
    for name in ("fusedlstm.backends.cuda.plans", "fusedlstm.backends.cuda"):
        monkeypatch.setitem(sys.modules, name, module)  # so that what was there comes back
        del sys.modules[name]
    monkeypatch.setattr(registry, "cuda", None, raising=False)
    cuda = importlib.import_module("fusedlstm.backends.cuda")
    monkeypatch.setitem(registry._modules, "cuda", cuda)
    monkeypatch.delitem(registry._reasons, "cuda", raising=False)
    monkeypatch.setattr(cuda, "DEVICES", {"cpu"})
    monkeypatch.setattr(cuda, "_card", lambda device: cuda.Card(132, 227 << 10, (9, 0)))
    return cuda
