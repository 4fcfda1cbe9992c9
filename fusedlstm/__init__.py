"""fusedlstm: a fused LSTM, as a drop-in for torch.nn.LSTM."""

from .backends import backends
from .functional import lstm
from .nn import LSTM

__version__ = "0.1.0"
__all__ = ["LSTM", "__version__", "backends", "lstm"]
