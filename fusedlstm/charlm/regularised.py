"""Layers that training disturbs on purpose: masks that last a chunk, dropped weights, states that stay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.functional import lstm, lstm_cell
from fusedlstm.nn import LSTM

State = tuple[Tensor, ...]

ONE_CALL: dict[type[nn.RNNBase], Callable[..., Any]] = {nn.GRU: torch.gru, nn.RNN: torch.rnn_tanh}


@dataclass(frozen=True)
class Regularisers:
    """What disturbs the layers: shares and flags as Settings names them."""

    dropout: float = 0.0
    variational: bool = False
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    zoneout: float = 0.0

    def leave_the_kernels(self, training: bool) -> bool:
        """Whether the layers must be run step by step."""
        return self.zoneout > 0 or (training and self.recurrent_dropout > 0)

    def change_the_layers(self, training: bool) -> bool:
        """Whether the stack of layers must be run by `run`, and not as it is in one call."""
        masks = self.weight_drop > 0 or (self.variational and self.dropout > 0)
        return self.leave_the_kernels(training) or (training and masks)

    def drop(self, x: Tensor, training: bool) -> Tensor:
        """Dropout of what a layer puts out, [T, B, H]; variational, its mask is the same at all T steps."""
        if self.variational and training:
            return x * F.dropout(torch.ones_like(x[:1]), self.dropout)
        return F.dropout(x, self.dropout, training)


def run(
    layers: nn.RNNBase, x: Tensor, state: State | None, how: Regularisers, training: bool
) -> tuple[Tensor, State]:
    """Runs a stack layer by layer, each with its masks, new ones at every call.

    Args:
        layers: with biases, one direction; an LSTM, or a GRU or RNN where nothing goes step by step.
        x: input [T, B, I]; an LSTM also takes ids [T, B].
        state: as the layers take it, h or h and c, each [L, B, H]; None for zeros.
        how: what is done to them.
        training: draw masks; without it zoneout has its expectation, and the rest does nothing.

    Returns:
        y [T, B, H], and the state after the last step.
    """
    one_layer = _step_by_step if how.leave_the_kernels(training) else _in_one_call
    L = layers.num_layers
    if state is None:
        zeros = layers.all_weights[0][1].new_zeros(L, x.shape[1], layers.hidden_size)
        state = (zeros, zeros) if isinstance(layers, LSTM) else (zeros,)
    ends = []
    for layer, (w_ih, w_hh, b_ih, b_hh) in enumerate(layers.all_weights):
        weights = [w_ih, F.dropout(w_hh, how.weight_drop, training), b_ih, b_hh]
        start = tuple(s[layer : layer + 1] for s in state)
        x, end = one_layer(layers, x, start, weights, how, training)
        x = how.drop(x, training) if layer < L - 1 else x
        ends.append(end)
    return x, tuple(torch.cat(s) for s in zip(*ends, strict=True))


def _in_one_call(
    layers: Any, x: Tensor, state: State, weights: list[Tensor], how: Regularisers, training: bool
) -> tuple[Tensor, State]:
    """One layer over all steps, state [1, B, H], by the kernels."""
    if isinstance(layers, LSTM):
        h, c = state
        y, end = lstm(x, (h, c), weights, recompute=layers.recompute, backend=layers.backend)
        return cast(Tensor, y), end
    y, h = ONE_CALL[type(layers)](x, *state, weights, True, 1, 0.0, training, False, False)
    return y, (h,)


def _step_by_step(
    layers: Any, x: Tensor, state: State, weights: list[Tensor], how: Regularisers, training: bool
) -> tuple[Tensor, State]:
    """One LSTM layer with recurrent dropout and zoneout, state [1, B, H], one call for each step."""
    h, c = (s[0].to(weights[1].dtype) for s in state)
    mask = F.dropout(torch.ones_like(h), how.recurrent_dropout, training)
    y = []
    # Autocast would round c at every step, and what a gate adds to it would often be lost.
    with torch.autocast(h.device.type, enabled=False):
        for step in x:
            new_h, new_c = lstm_cell(step, (h * mask, c), *weights, backend=layers.backend)
            h, c = _zoned(h, new_h, how.zoneout, training), _zoned(c, new_c, how.zoneout, training)
            y.append(h)
    return torch.stack(y), (h[None], c[None])


def _zoned(old: Tensor, new: Tensor, share: float, training: bool) -> Tensor:
    """The new state but for a share that stays the old one: drawn while training, else as expected."""
    if training:
        return torch.where(torch.rand_like(new) < share, old, new)
    return torch.lerp(new, old, share)
