"""How well a model predicts a text: its mean loss, with weights that stay or that adapt as it reads."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.streams import Streams

WARM = 1000  # characters that a stretch of a text is read from before it counts
CHUNK = 256  # steps of one call where only memory decides
EPSILON = 0.1  # smallest size of a weight's gradient that dynamic reckons with, as a share of the mean size
UNCOUNTED = -100  # a target that is none


@torch.inference_mode()
def evaluate(model: CharLM, streams: Streams, T: int, dtype: torch.dtype, steps: int | None = None) -> float:
    """Mean loss in nats over the streams, T steps at a time with the state carried over.

    Args:
        model: on the device of the streams; it is put in eval mode.
        T: length of a chunk; it does not change the result.
        dtype: of the arithmetic.
        steps: how far to read each stream, in whole chunks; to its end by default.
    """
    model.eval()
    state, total, n = None, 0.0, 0
    for x, y in streams.chunks(T, steps):
        loss, state = _loss(model, x, y, state, dtype)
        total += loss.item()
        n += y.numel()
    return total / n


@torch.inference_mode()
def whole(
    model: CharLM, ids: np.ndarray, B: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> float:
    """Mean loss in nats over all of a text but its first character, as if it were read in one go.

    The text is read in stretches side by side. Each but the first starts WARM characters before the end of
    the one before, and what it loses on these does not count: by then its state is that of a reader of all.

    Args:
        model: on the device; it is put in eval mode.
        ids: the text [N], or texts [B, n + 1] that have nothing to do with each other.
        B: stretches of a text [N], fewer if they would be too short to be worth it.
        dtype: of the arithmetic.
        device: where to read.
    """
    if ids.ndim == 2:
        return evaluate(model, Streams(ids, len(ids), device), CHUNK, dtype)
    model.eval()
    targets = len(ids) - 1
    B, warm = max(1, min(B, targets // WARM - 1)), min(WARM, targets)
    steps = warm - (warm - targets) // B  # rounded up
    starts = np.minimum((steps - warm) * np.arange(B), targets - steps)
    counted = np.append(0, starts[:-1] + steps)  # the last target that the stretch before has counted
    state: State | None = None
    total = 0.0
    for start in range(0, steps, CHUNK):
        at = starts + np.arange(start, min(start + CHUNK, steps) + 1)[:, None]  # [T + 1, B]
        x, after = (torch.from_numpy(ids[rows].astype(np.int64)).to(device) for rows in (at[:-1], at[1:]))
        y = after.where(torch.from_numpy(at[1:] > counted).to(device), UNCOUNTED)
        loss, state = _loss(model, x, y, state, dtype)
        total += loss.item()
    return total / targets


def dynamic(
    model: CharLM,
    streams: Streams,
    T: int,
    dtype: torch.dtype,
    rate: float,
    decay: float,
    sizes: dict[str, Tensor],
) -> float:
    """Mean loss in nats of a model that goes on learning from what it has read (Krause et al. 2018).

    After each chunk, whose loss counts as the model was before it, every weight takes a step against its
    gradient in units of the gradient's usual size, and is pulled back to where training left it, the harder
    the larger that size. At the end the weights are what they were.

    Args:
        model: on the device of the streams; it is put in eval mode.
        streams: of the text; one stream adapts best.
        T: length of a chunk, after which the weights take a step.
        dtype: of the arithmetic.
        rate: step size; 0 is evaluate.
        decay: share of the way back to the trained weights, at each step, for a weight of mean size.
        sizes: usual size of each weight's gradient, from gradient_sizes.
    """
    mean = torch.cat([size.flatten() for size in sizes.values()]).mean()
    total, n = 0.0, 0
    with _kept(model) as trained:
        for y, loss, gradients in _gradients(model, streams.chunks(T), dtype):
            total += loss * y.numel()
            n += y.numel()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.sub_(rate * gradients[name] / (sizes[name] + EPSILON * mean))
                    back = (decay * sizes[name] / mean).clamp(max=1)
                    parameter.add_(back * (trained[name] - parameter))
    return total / n


def gradient_sizes(
    model: CharLM, streams: Streams, T: int, dtype: torch.dtype, steps: int
) -> dict[str, Tensor]:
    """Root of the mean square of each weight's gradient over chunks of the text that a model has learnt.

    Args:
        streams, T: as dynamic will read: the size of a gradient depends on how many characters it is from.
        steps: how far to read each stream, in whole chunks.
    """
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    n = 0
    for _, _, gradients in _gradients(model, streams.chunks(T, steps), dtype):
        n += 1
        for name, gradient in gradients.items():
            squares[name] += gradient.square()
    return {name: (square / n).sqrt() for name, square in squares.items()}


def _gradients(
    model: CharLM, chunks: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> Iterator[tuple[Tensor, float, dict[str, Tensor]]]:
    """Targets of each chunk, its mean loss in nats, and the gradients of that; the state is carried over."""
    model.eval()
    parameters = dict(model.named_parameters())
    state: State | None = None
    for x, y in chunks:
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradients in eval mode
            loss, state = _loss(model, x, y, state, dtype)
            gradients = torch.autograd.grad(loss / y.numel(), list(parameters.values()))
        state = tuple(s.detach() for s in state)
        yield y, loss.item() / y.numel(), dict(zip(parameters, gradients, strict=True))


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Gives a copy of the weights, and puts them back in the end."""
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        yield trained
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(trained[name])


def _loss(
    model: CharLM, x: Tensor, y: Tensor, state: State | None, dtype: torch.dtype
) -> tuple[Tensor, State]:
    """Sum of the losses in nats over a chunk [T, B], and the state after it."""
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        logits, state = model(x, state)
    loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=UNCOUNTED, reduction="sum")
    return loss, state
