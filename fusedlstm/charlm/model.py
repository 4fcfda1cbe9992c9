"""The network: characters one-hot or embedded, recurrent layers, a linear map to logits of the next."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.charlm.regularised import Regularisers, State, run
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.nn import LSTM

LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class CharLM(nn.Module):
    """Predicts the next character of each stream.

    Args:
        vocab_size: distinct characters V.
        rnn_size: hidden units H.
        num_layers: layers L.
        dropout: share of each layer's outputs that is dropped while training.
        model: kind of the layers: lstm (fusedlstm's), gru or rnn (torch's, the latter with tanh).
        embedding: width E of a learnt embedding; 0 reads characters one-hot.
        tied: the embedding is the decoder's weight; E = H.
        variational: dropout keeps its mask over the steps of a call.
        recurrent_dropout: share of h dropped on its way to the next step, one mask a call (lstm).
        weight_drop: share of the recurrent weights dropped, one mask a call.
        zoneout: share of h and c that stay as they were at a step (lstm).
        init_range: weights start uniform in plus or minus this, biases at 0; 0 for each layer's own start.

    Raises:
        CharLMError: when the kind of layers does not have what is asked for.
    """

    lstm: LSTM  # the layers where the kind is lstm; else they are named gru or rnn

    def __init__(
        self,
        vocab_size: int,
        rnn_size: int,
        num_layers: int,
        dropout: float = 0.0,
        *,
        model: str = "lstm",
        embedding: int = 0,
        tied: bool = False,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        init_range: float = 0.0,
    ) -> None:
        super().__init__()
        for flag, share in (("--recurrent-dropout", recurrent_dropout), ("--zoneout", zoneout)):
            if share and model != "lstm":
                raise CharLMError(f"{flag} must be 0 with --model {model}, got {share}: only lstm has it")
        self.kind, self.tied, self.vocab_size = model, tied, vocab_size
        self.how = Regularisers(dropout, variational, recurrent_dropout, weight_drop, zoneout)
        between = dropout if num_layers > 1 else 0.0
        self.add_module(model, LAYERS[model](embedding or vocab_size, rnn_size, num_layers, dropout=between))
        self.decoder = nn.Linear(rnn_size, vocab_size)
        self.embedding = nn.Embedding(vocab_size, embedding) if embedding and not tied else None
        self._start(init_range)

    @classmethod
    def from_settings(cls, settings: Settings, vocab_size: int) -> "CharLM":
        """An untrained model as settings describe it, of V characters."""
        names = (
            "rnn_size", "num_layers", "dropout", "model", "embedding", "tied", "variational",
            "recurrent_dropout", "weight_drop", "zoneout", "init_range",
        )  # fmt: skip
        return cls(vocab_size, **{name: getattr(settings, name) for name in names})

    @property
    def layers(self) -> nn.RNNBase:
        """The recurrent layers, of any kind."""
        return getattr(self, self.kind)

    @property
    def plain(self) -> bool:
        """Whether in eval mode the layers run as they are: what reads the weights by itself must ask."""
        return not self.how.change_the_layers(training=False)

    def describe(self) -> str:
        """Kind and size in a few words."""
        loop = " (step by step: the fused kernels cannot do it)" if self.how.leave_the_kernels(True) else ""
        L, H = self.layers.num_layers, self.layers.hidden_size
        return f"{L} {self.kind} layers of {H}{loop}, {parameters_of(self):,} parameters"

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
            state: after the characters before, h and c for lstm, else h, each [L, B, H]; None for zeros.

        Returns:
            Logits [T, B, V], and the state after the last character.
        """
        x = self.read(ids)
        if self.how.change_the_layers(self.training):
            y, state = run(self.layers, x, state, self.how, self.training)
        elif self.kind == "lstm":
            y, state = self.lstm(x, state)
        else:
            y, h = self.layers(x, state and state[0])
            state = (h,)
        return self.decoder(self.how.drop(y, self.training)), state

    def read(self, ids: Tensor) -> Tensor:
        """What the first layer reads: ids, embedded [T, B, E], or for torch's layers one-hot [T, B, V]."""
        if self.tied:  # one tensor under one name: a file that holds the weights has no use for another
            return F.embedding(ids, self.decoder.weight)
        if self.embedding is not None:
            return self.embedding(ids)
        return ids if self.kind == "lstm" else F.one_hot(ids, self.vocab_size).to(self.decoder.weight.dtype)

    @torch.no_grad()
    def _start(self, init_range: float) -> None:
        """Draws the weights, and opens the forget gates of an LSTM."""
        all_weights = self.layers.all_weights
        if init_range:
            for parameter in self.parameters():
                parameter.uniform_(-init_range, init_range) if parameter.dim() > 1 else parameter.zero_()
        elif self.embedding is None:
            # One of V inputs is on at a time, or the embedding is as faint as a decoder: torch's range for
            # H inputs of size 1 would be far too faint.
            all_weights[0][0].uniform_(-1, 1)
        if self.kind == "lstm":
            H = self.lstm.hidden_size
            for _, _, b_ih, _ in all_weights:
                b_ih[H : 2 * H] = 1.0


def parameters_of(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())
