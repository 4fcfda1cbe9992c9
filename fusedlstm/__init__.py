"""fusedlstm: a fused LSTM, as a drop-in for torch.nn.LSTM."""

from .backends import backends
from .convert import convert, explain
from .functional import lstm
from .nn import LSTM, LSTMCell

__version__ = "0.1.0"
__all__ = ["LSTM", "LSTMCell", "__version__", "backends", "convert", "explain", "lstm"]
