"""Writing: all layers, the decoder and the draw of many characters in one call of a backend.

A character depends on the seed, its stream, its position and what stands before it, and on nothing else: in
whatever pieces a text is asked for, the same seed gives the same text. Its chance is the first word of
Philox4x32-10 over 2^32 (key: seed; counter: stream, then position, 64 bits each, the low word first), and the
character is the one whose part of the filtered softmax, in the order of the ids, it falls into.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .backends import Stack, check_name, load
from .functional import States, lstm

_BACKENDS = ("cpu", "cuda")  # each writes on the device of its name


class Writer(Protocol):
    """What a backend's generator(stack, B, precision, seed) returns; it may also have read(ids, scored)."""

    h: Tensor  # [L, B, H] after all characters but the last
    c: Tensor
    last: Tensor  # [B] int64

    def generate(
        self, count: int, first_position: int, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> Tensor:
        """The next characters [count, B]."""


class Generator:
    """Streams of characters, side by side, that a trained stack of layers reads and goes on writing.

    Args:
        weights: of each layer w_ih [4H, V] (first layer; [4H, E] with an embedding) or [4H, H], w_hh [4H, H]
            and, with biases, b_ih and b_hh [4H]: all_weights of a module. They are copied.
        decoder_weight: from h of the last layer to the logits [V, H].
        decoder_bias: [V].
        B: streams.
        precision: what the matrices are kept in but for the first layer's inputs: "float32"; "bfloat16";
            "int8", with a scale for each row. States are float32.
        seed: 64 bits; None takes another each time.
        backend: "auto", or the backend that must write.
        embedding: of the characters [V, E]; None reads them one-hot.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of the wrong type, shape or device, or not finite; a
            backend that cannot write.
    """

    @torch.inference_mode(False)  # its tensors are written wherever it is used
    def __init__(
        self,
        weights: Sequence[Sequence[Tensor]],
        decoder_weight: Tensor,
        decoder_bias: Tensor,
        B: int = 1,
        precision: str = "float32",
        seed: int | None = None,
        backend: str = "auto",
        embedding: Tensor | None = None,
    ) -> None:
        _check_whole("B", B, 1)
        if seed is not None:
            _check_whole("seed", seed, -(2**63), 2**64)
        self._stack = _stacked(weights, decoder_weight, decoder_bias, embedding)
        name = _backend(backend, decoder_weight.device)
        seed = random.getrandbits(64) if seed is None else seed % 2**64
        self._writer: Writer = load(name).generator(self._stack, B, precision, seed)
        self._begun = False
        self.position = 0  # of the next character that is drawn

    @property
    def state(self) -> States:
        """h and c [L, B, H], float32, after all characters that were read or written but the last."""
        return self._writer.h.clone(), self._writer.c.clone()

    @state.setter
    def state(self, state: States) -> None:
        for name, now, new in zip("hc", (self._writer.h, self._writer.c), state, strict=True):
            if new.shape != now.shape:
                raise RuntimeError(f"{name} must be [L, B, H] = {list(now.shape)}, got {list(new.shape)}")
            if not new.isfinite().all():
                raise ValueError(f"{name} must be finite, got inf or nan in it")
            now.copy_(new)

    @property
    def last(self) -> Tensor | None:
        """The last characters [B], which the state does not know yet; None when there are none."""
        return self._writer.last.clone() if self._begun else None

    @last.setter
    def last(self, ids: Tensor) -> None:
        self._check_ids(ids[None])
        self._writer.last.copy_(ids)
        self._begun = True

    def read(self, ids: Tensor) -> None:
        """Takes in characters.

        Args:
            ids: [T, B], int64.

        Raises:
            RuntimeError, IndexError: ids of the wrong shape or dtype, or outside 0 <= id < V.
        """
        self._check_ids(ids)
        if not self._begun:
            self.last = ids[0]
            ids = ids[1:]
        self._take(ids, scored=False)

    def score(self, ids: Tensor) -> Tensor:
        """Takes in characters and tells how much of a surprise they were.

        Args:
            ids: [T, B], int64.

        Returns:
            -log of the probability that each character had after all before it [T, B], in nats, float32.

        Raises:
            RuntimeError, IndexError: as read does; nothing was read before.
        """
        self._check_ids(ids)
        self._check_begun("score")
        return self._take(ids, scored=True)

    def generate(
        self, count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
    ) -> Tensor:
        """Writes on. The filters come one after the other; of equals the lower ids are the likelier.

        Args:
            count: characters of each stream.
            temperature: below 1 surer, above 1 wilder; 0 takes the likeliest.
            top_k: only the k likeliest; 0 for all.
            top_p: only the fewest of the likeliest that together have this share of the probability.
            min_p: only those at least this many times as likely as the likeliest.

        Returns:
            ids [count, B], int64.

        Raises:
            ValueError: an argument out of range.
            RuntimeError: nothing was read before.
        """
        _check_whole("count", count, 0)
        _check_whole("top_k", top_k, 0)
        for name, value, good, expected in (
            ("temperature", temperature, 0 <= temperature < float("inf"), "a finite number, at least 0"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
            ("min_p", min_p, 0 <= min_p <= 1, "at least 0 and at most 1"),
        ):
            if not good:
                raise ValueError(f"{name} must be {expected}, got {value}")
        self._check_begun("generate")
        if count == 0:
            return self._writer.last.new_empty(0, len(self._writer.last))
        ids = self._writer.generate(count, self.position, temperature, top_k, top_p, min_p)
        self.position += count
        return ids

    def _take(self, ids: Tensor, scored: bool) -> Tensor:
        if len(ids) == 0:
            return self._writer.h.new_empty(ids.shape)
        read = getattr(self._writer, "read", None)
        return read(ids, scored) if read else _read_by_layers(self._stack, self._writer, ids, scored)

    def _check_begun(self, method: str) -> None:
        if not self._begun:
            raise RuntimeError(f"{method} needs a character to go on from: read() at least one before")

    def _check_ids(self, ids: Tensor) -> None:
        V, last = len(self._stack.decoder), self._writer.last
        if ids.dim() != 2 or ids.shape[1] != len(last) or len(ids) == 0:
            raise RuntimeError(f"ids must be [T, B] with T >= 1 and B = {len(last)}, got {list(ids.shape)}")
        if ids.dtype != torch.int64 or ids.device != last.device:
            raise RuntimeError(f"ids must be torch.int64 on {last.device}, got {ids.dtype} on {ids.device}")
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= V:
            raise IndexError(f"ids must be in 0 <= id < V = {V}, got {low if low < 0 else high}")


@torch.no_grad()
def _read_by_layers(stack: Stack, writer: Writer, ids: Tensor, scored: bool) -> Tensor:
    """Reads as the CPU's writer does, in float32, through the layers' own op."""
    nothing = torch.zeros_like(stack.table[0])
    weights = [stack.table.T.contiguous(), stack.weights[0], nothing, nothing]
    for k, bias in enumerate(stack.biases):
        weights += [stack.weights[2 * k + 1], stack.weights[2 * k + 2], bias, nothing]
    before = torch.cat((writer.last[None], ids[:-1]))
    y, (h, c) = lstm(before, (writer.h, writer.c), weights, num_layers=stack.sizes[0])
    for kept, new in ((writer.h, h), (writer.c, c), (writer.last, ids[-1])):
        kept.copy_(new)
    assert isinstance(y, Tensor)
    if not scored:
        return y.new_empty(0)
    logits = y @ stack.decoder.T + stack.decoder_bias
    return cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)


def _backend(backend: str, device: torch.device) -> str:
    """The backend that writes on a device."""
    check_name(backend)
    name = device.type if backend == "auto" else backend
    if name not in _BACKENDS or not hasattr(load(name), "generator"):
        raise ValueError(
            f"backend={name!r} does not write: step through the model itself, or move it to the CPU"
        )
    if name != device.type:
        raise ValueError(f"backend={name!r} writes on {name}, the weights are on {device}: use .to()")
    return name


@torch.no_grad()
def _stacked(
    weights: Sequence[Sequence[Tensor]], decoder: Tensor, decoder_bias: Tensor, embedding: Tensor | None
) -> Stack:
    """Checks the weights and puts them together."""
    if not weights or any(len(layer) not in (2, 4) or len(layer) != len(weights[0]) for layer in weights):
        counts = [len(layer) for layer in weights]
        raise RuntimeError(f"weights must be 2, or 4 with biases, for each of L >= 1 layers, got {counts}")
    _check_tensor("decoder_weight", decoder, "[V, H]", (None, None), decoder)
    V, H = decoder.shape
    _check_tensor("decoder_bias", decoder_bias, "[V]", (V,), decoder)
    width = V
    if embedding is not None:
        _check_tensor("embedding", embedding, "[V, E]", (V, None), decoder)
        width = embedding.shape[1]
    for k, (w_ih, w_hh, *biases) in enumerate(weights):
        inputs, spelled = (H, "[4*H, H]") if k else (width, f"[4*H, {'V' if embedding is None else 'E'}]")
        _check_tensor(f"w_ih of layer {k}", w_ih, spelled, (4 * H, inputs), decoder)
        _check_tensor(f"w_hh of layer {k}", w_hh, "[4*H, H]", (4 * H, H), decoder)
        for name, bias in zip(("b_ih", "b_hh"), biases, strict=False):
            _check_tensor(f"{name} of layer {k}", bias, "[4*H]", (4 * H,), decoder)
    (w_ih, *_), *others = weights
    columns = w_ih.double().T
    table = columns if embedding is None else embedding.double() @ columns
    each = [sum((b.double() for b in biases), decoder.new_zeros(4 * H).double()) for _, _, *biases in weights]
    matrices = [weights[0][1], *(matrix for layer in others for matrix in layer[:2])]
    return Stack(
        (table + each[0]).float().contiguous(),
        torch.stack(matrices).float().contiguous(),
        torch.stack(each)[1:].float().contiguous(),
        decoder.detach().float().contiguous(),
        decoder_bias.detach().float().contiguous(),
    )


def _check_tensor(
    name: str, tensor: Tensor, spelled: str, shape: tuple[int | None, ...], beside: Tensor
) -> None:
    """Raises unless a tensor is finite, of a shape (None: any size), on the device of the one beside it."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dim() != len(shape) or any(
        n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)
    ):
        sizes = "" if None in shape else f" = {list(shape)}"
        raise RuntimeError(f"{name} must be {spelled}{sizes}, got {list(tensor.shape)}")
    if not tensor.is_floating_point() or tensor.device != beside.device:
        raise RuntimeError(
            f"{name} must be floating point on {beside.device}, got {tensor.dtype} on {tensor.device}"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got inf or nan in it")


def _check_whole(name: str, value: object, least: int, end: int | None = None) -> None:
    """Raises ValueError unless a value is an int from least on, below end."""
    if type(value) is not int or value < least or (end is not None and value >= end):
        expected = f"at least {least}" if end is None else "of 64 bits"
        raise ValueError(f"{name} must be a whole number, {expected}, got {value!r}")
