"""Modules: the parameters, state_dict and options of torch.nn's, over fusedlstm.functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import dynamo
from .backends import check_name
from .functional import States, lstm, lstm_cell


class LSTM(torch.nn.LSTM):
    """A torch.nn.LSTM, parameter for parameter, whose arithmetic fusedlstm does.

    Args:
        input_size: width I of the input.
        hidden_size: hidden units H.
        num_layers: layers L, each fed by the one before.
        bias: layers have the biases b_ih and b_hh.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; the states are not.
        dropout: probability to zero an output of a layer that feeds another one, while training.
        bidirectional: a second direction reads the sequence from its end.
        proj_size: width P to which h is projected; 0 for none.
        device: of the parameters.
        dtype: of the parameters.
        backend: "auto", or the backend that must serve every call: see fusedlstm.backends().
        recompute: the backward makes the gates again instead of keeping them: less memory, some more time.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type.
    """

    backend: str = "auto"
    recompute: bool = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        check_name(backend)
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__(input_size, hidden_size, *options)
        self.backend = backend
        self.recompute = recompute

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        resets: Tensor | PackedSequence | None = None,
    ) -> tuple[Tensor | PackedSequence, States]:
        """Runs all layers over a batch of sequences.

        Args:
            input: [T, B, I], [B, T, I] with batch_first, [T, I] for one sequence, or a PackedSequence; or
                int64 ids without the last dimension, which stand for one-hot rows of width I.
            hx: first states h0 [L*D, B, P] and c0 [L*D, B, H], without B for one sequence; None means zeros.
            resets: where sequences start anew, bool [T, B], in the input's layout: the states before that
                step are zero in all layers, and none crosses the border before it in either direction. For a
                PackedSequence one of bool with the same lengths and order. None means nowhere.

        Returns:
            y [T, B, D*P] in the input's layout, and (h_n [L*D, B, P], c_n [L*D, B, H]).

        Raises:
            TypeError, ValueError, RuntimeError, IndexError: as fusedlstm.lstm does.
        """
        # Weights are read at each call: parametrizations, functional_call and plain assignment replace them.
        p = self._parameters
        weights: Any = [p[name] if name in p else getattr(self, name) for name in self._flat_weights_names]
        return lstm(
            input,
            hx,
            weights,
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            recompute=self.recompute,
            backend=self.backend,
            resets=resets,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _backend_repr(self) + (", recompute=True" if self.recompute else "")


class LSTMCell(torch.nn.LSTMCell):
    """A torch.nn.LSTMCell, parameter for parameter, whose arithmetic fusedlstm does.

    Args:
        input_size: width I of the input.
        hidden_size: hidden units H.
        bias: has the biases b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.
        backend: "auto", or the backend that must serve every call: see fusedlstm.backends().
    """

    backend: str = "auto"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        check_name(backend)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.backend = backend

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """Runs one step.

        Args:
            input: [B, I], or [I] for one sequence; or int64 ids without the last dimension.
            hx: states h and c [B, H], or [H] for one sequence; None means zeros.

        Returns:
            h and c after the step, shaped as hx.

        Raises:
            TypeError, ValueError, RuntimeError, IndexError: as fusedlstm.lstm does.
        """
        return lstm_cell(
            input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, backend=self.backend
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _backend_repr(self)


def _backend_repr(module: LSTM | LSTMCell) -> str:
    return "" if module.backend == "auto" else f", backend={module.backend!r}"


dynamo.allow(LSTM)
