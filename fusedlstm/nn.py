"""Modules: the parameters, state_dict and options of torch.nn.LSTM and LSTMCell, over fusedlstm.functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .functional import States, lstm


class LSTM(torch.nn.LSTM):
    """A drop-in torch.nn.LSTM that runs on the fastest fusedlstm backend."""

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def forward(  # type: ignore[override]
        self, input: Tensor | PackedSequence, hx: States | None = None
    ) -> tuple[Tensor | PackedSequence, States]:
        p = self._parameters
        return lstm(
            input,
            hx,
            [p[name] if name in p else getattr(self, name) for name in self._flat_weights_names],
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            backend=self.backend,
        )
