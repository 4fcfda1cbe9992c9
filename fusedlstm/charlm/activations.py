"""What goes on inside a model while it reads: its cells, its gates, and what it expects next."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusedlstm.backends import NAMES, why_not
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.functional import spec
from fusedlstm.ops import layer_fwd

CHUNK = 500  # characters between two copies: their gates are all that is held of what nobody keeps
TOP = 5  # likeliest next characters
GATES = "ifgo"
QUANTITIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # of c, h [T, H] and gates [T, 4, H]
    "tanh_c": lambda c, h, gates: c.tanh(),
    "c": lambda c, h, gates: c,
    "h": lambda c, h, gates: h,
    "i": lambda c, h, gates: gates[:, 0],
    "f": lambda c, h, gates: gates[:, 1],
    "g": lambda c, h, gates: gates[:, 2],
    "o": lambda c, h, gates: gates[:, 3],
}
SHUT = 1e4  # a gate with this in front of its sigmoid is 1, with its negative 0
NEARLY_ONE = 1 - 1e-7  # what tanh and sigmoid never reach


@dataclass(frozen=True)
class Activations:
    """What a model did with a text of N characters; row n is how it stood once character n had been read.

    Args:
        values: quantity -> its values [N, layers kept, H].
        layers: which layers these are, from 0.
        likeliest: ids of the 5 likeliest next characters, the likeliest first [N, 5].
        probabilities: theirs [N, 5].
        bits: what character n cost, given those before it [N]; the first is not predicted: nan.
        state: h and c after the text, each [L, 1, H].
        before: h and c before each CHUNK characters, each [L, chunks, H].
    """

    values: dict[str, np.ndarray]
    layers: tuple[int, ...]
    likeliest: np.ndarray
    probabilities: np.ndarray
    bits: np.ndarray
    state: State
    before: State


@torch.no_grad()
def activations(
    model: CharLM,
    ids: np.ndarray,
    keep: Sequence[str] = ("tanh_c",),
    layers: Sequence[int] | None = None,
    dtype: str = "float16",
    state: State | None = None,
) -> Activations:
    """Reads a text and keeps what is asked for: N x layers x H numbers of each quantity, and little else.

    It is read in one stream: several would begin in the midst of what a cell remembers.

    Args:
        model: in eval mode; its layers must be LSTMs as they are.
        ids: text [N].
        keep: which of QUANTITIES.
        layers: which layers, from 0; None for all.
        dtype: in which NumPy keeps them.
        state: h and c after the text before this one; None for zeros.

    Raises:
        CharLMError: when there is no text, no such quantity or layer, or the model is of another kind.
    """
    lstm = _layers(model)
    L, H, N, V = lstm.num_layers, lstm.hidden_size, len(ids), model.decoder.out_features
    kept = tuple(range(L) if layers is None else layers)
    if N < 1:
        raise CharLMError("the text must have at least 1 character, got none")
    if wrong := set(keep) - set(QUANTITIES):
        raise CharLMError(f"keep must be some of {', '.join(QUANTITIES)}, got {', '.join(sorted(wrong))}")
    if wrong_layers := set(kept) - set(range(L)):
        raise CharLMError(f"layers must be from 0 to {L - 1}, got {min(wrong_layers)}")
    weight = model.decoder.weight
    text = torch.from_numpy(ids.astype(np.int64)).to(weight.device)
    h, c = (t.clone() for t in state) if state else weight.new_zeros(2, L, 1, H)
    made = Activations(
        {name: np.empty((N, len(kept), H), dtype) for name in keep},
        kept,
        np.empty((N, min(TOP, V)), np.uint16),
        np.empty((N, min(TOP, V)), np.float32),
        np.full(N, np.nan, np.float32),
        (h, c),
        (h.new_empty(L, -(-N // CHUNK), H), c.new_empty(L, -(-N // CHUNK), H)),
    )
    for start in range(0, N, CHUNK):
        part = slice(start, start + CHUNK)
        for past, now in zip(made.before, (h, c), strict=True):
            past[:, start // CHUNK] = now[:, 0]
        x = model.read(text[part])
        for layer, weights in enumerate(lstm.all_weights):
            states = h[layer : layer + 1], c[layer : layer + 1]
            x, h_n, c_n, cells, gates = layer_fwd(x, None, *states, weights, True, _backend(weights, x))
            h[layer], c[layer] = h_n[0], c_n[0]
            if layer in kept:
                for name, array in made.values.items():
                    found = QUANTITIES[name](cells[0], x, gates[0].unflatten(1, (4, H)))
                    array[part, kept.index(layer)] = found.cpu().numpy()
        log_p = model.decoder(x).log_softmax(1)
        top = log_p.topk(min(TOP, V))
        made.likeliest[part] = top.indices.cpu().numpy()
        made.probabilities[part] = top.values.exp().cpu().numpy()
        after = text[start + 1 : start + CHUNK + 1]
        cost = -log_p[: len(after)].gather(1, after[:, None])[:, 0] / math.log(2)
        made.bits[start + 1 : start + 1 + len(after)] = cost.cpu().numpy()
    return made


@torch.no_grad()
def bits_apart(model: CharLM, ids: np.ndarray, before: State) -> np.ndarray:
    """What characters cost when all CHUNKs of a text are read side by side, each from a state of its own.

    Args:
        model: in eval mode.
        ids: text [N]; what is left over after the last whole chunk is not read.
        before: h and c before each whole chunk, each [L, chunks, H].

    Returns:
        Bits [chunks, CHUNK]; the first of a chunk is not predicted: nan.
    """
    chunks = before[0].shape[1]
    rows = ids[: chunks * CHUNK].astype(np.int64).reshape(chunks, CHUNK)
    text = torch.from_numpy(rows.T.copy()).to(before[0].device)
    logits, _ = model(text, before)
    nats = torch.nn.functional.cross_entropy(logits[:-1].transpose(1, 2), text[1:], reduction="none")
    return np.pad(nats.T.cpu().numpy() / math.log(2), ((0, 0), (1, 0)), constant_values=np.nan)


def clamped(
    model: CharLM, state: State, layer: int, cell: int, quantity: str, value: float
) -> tuple[CharLM, State]:
    """A copy of a model in which a cell is the same at every step, and the state in which to start it.

    Nothing but weights differs, so that the fused kernels run it: with the input gate shut and the forget
    gate open c stays what it was, with the output gate open too so does h, and a gate is what its bias
    makes it.

    Args:
        model: as for activations.
        state: h and c from which the model would have started, each [L, B, H].
        layer: from 0.
        cell: from 0.
        quantity: which of QUANTITIES is to be so.
        value: what it is to be.
    """
    model, (h, c) = copy.deepcopy(model), (t.clone() for t in state)
    if quantity == "c":
        fixed = {"i": -SHUT, "f": SHUT}
        c[layer, :, cell] = value
    elif quantity in ("tanh_c", "h"):
        fixed = {"i": -SHUT, "f": SHUT} | ({"o": SHUT} if quantity == "h" else {})
        c[layer, :, cell] = _atanh(value)
        h[layer, :, cell] = value if quantity == "h" else h[layer, :, cell]
    else:
        fixed = {quantity: _atanh(value) if quantity == "g" else 2 * _atanh(2 * value - 1)}
    with torch.no_grad():
        w_ih, w_hh, b_ih, b_hh = _layers(model).all_weights[layer]
        for gate, before in fixed.items():
            row = GATES.index(gate) * w_hh.shape[1] + cell
            w_ih[row], w_hh[row], b_ih[row], b_hh[row] = 0.0, 0.0, before, 0.0
    return model, (h, c)


def _atanh(value: float) -> float:
    return math.atanh(max(-NEARLY_ONE, min(NEARLY_ONE, value)))


def _layers(model: CharLM) -> torch.nn.LSTM:
    """The layers of a model, if they are LSTMs whose weights say all that they do."""
    if model.kind != "lstm":
        raise CharLMError(f"--model must be lstm to look inside, got {model.kind}: it has no cells")
    if not model.plain:
        raise CharLMError("--zoneout must be 0 to look inside: it changes what the cells do at each step")
    return model.lstm


def _backend(weights: Sequence[Tensor], x: Tensor) -> str:
    """Who computes a layer and tells its cells and gates; torch's own LSTM does not."""
    asked = spec(weights, len(x), 1, True, 1, False, ids=x.dim() == 1, packed=False, grad=True)
    return next(name for name in NAMES if name != "torch" and why_not(asked, name) is None)
