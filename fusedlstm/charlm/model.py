"""The network: one-hot bytes, LSTM layers, a linear map to the logits of the next byte."""

import torch
from torch import Tensor, nn

from fusedlstm.nn import LSTM

State = tuple[Tensor, Tensor]


class CharLM(nn.Module):
    """Predicts the next character of each stream.

    Args:
        vocab_size: distinct characters V.
        rnn_size: hidden units H.
        num_layers: LSTM layers L.
        dropout: share of each layer's outputs that is dropped while training.
    """

    def __init__(self, vocab_size: int, rnn_size: int, num_layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.lstm = LSTM(vocab_size, rnn_size, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, vocab_size)
        with torch.no_grad():
            # One of the V inputs is on at a time: torch's range for H of them would be far too faint.
            self.lstm.all_weights[0][0].uniform_(-1, 1)
            for _, _, b_ih, _ in self.lstm.all_weights:
                b_ih[rnn_size : 2 * rnn_size] = 1.0  # forget gates start open

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Lets an untrained model predict each character as often as it occurs, which saves it learning that.

        Args:
            counts: of each character [V].
        """
        self.decoder.bias.copy_(((counts + 1) / (counts + 1).sum()).log())

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads characters and returns the logits of the one after each.

        Args:
            ids: characters [T, B], int64.
            state: h and c [L, B, H] after the characters before; None for zeros.

        Returns:
            Logits [T, B, V], and h and c after the last character.
        """
        y, state = self.lstm(ids, state)
        return self.decoder(self.dropout(y)), state
