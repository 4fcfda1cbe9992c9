"""Lets torch.compile trace fusedlstm.LSTM.

torch.compile breaks its graph at every instance of torch.nn.LSTM, of which ours is one, unless allow_rnn is
set in its configuration. Set for good, that would also let in torch's own LSTM, whose backward does not
compile. So it is set only while an instance of ours is looked at. Importing torch._dynamo takes a second: we
wait until somebody does.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_BUILDER = "torch._dynamo.variables.builder"


def allow(cls: type) -> None:
    """Makes torch.compile trace instances of an RNN class, now or when torch._dynamo is first imported."""
    if _BUILDER in sys.modules:
        _patch(sys.modules[_BUILDER], cls)
    else:
        sys.meta_path.insert(0, _Watcher(cls))


def _patch(builder: ModuleType, cls: type) -> None:
    wrap_module = builder.VariableBuilder.wrap_module

    def wrap(self: Any, value: Any) -> Any:
        if not isinstance(value, cls):
            return wrap_module(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap


class _Watcher(importlib.abc.MetaPathFinder):
    """Patches the module that decides, as soon as it has been imported."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module, self.cls)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec
