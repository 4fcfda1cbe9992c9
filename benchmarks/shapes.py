"""The shapes that are measured, each with a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

INFER, FORWARD, TRAIN = "infer", "forward", "forward+backward"


@dataclass(frozen=True)
class Row:
    """One shape: sizes, dtype ("float32", ...), and what a pass does.

    Args:
        name: of the row.
        H: hidden units. L: layers. B: sequences. T: steps. I: input width.
        mode: INFER without autograd; FORWARD keeps what a backward would need; TRAIN runs it too.
        dtype: of input and weights.
        bidirectional: two directions.
        needs_dx: the input needs a gradient (with TRAIN).
    """

    name: str
    H: int
    L: int
    B: int
    T: int
    I: int  # noqa: E741
    mode: str = TRAIN
    dtype: str = "float32"
    bidirectional: bool = False
    needs_dx: bool = False

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it can be measured: float16 on a CPU and float64 on a GPU are torch's alone."""
        return {"float16": ("cuda",), "float64": ("cpu",)}.get(self.dtype, ("cpu", "cuda"))

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def D(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def widths(self) -> list[int]:
        """Of each layer's input."""
        return [self.I, *[self.D * self.H] * (self.L - 1)]

    @property
    def flops(self) -> int:
        """What the matrix products of one pass need; gates and biases are not counted."""
        per_input = 2 * 4 * self.H * self.D * self.T * self.B  # of a product that has one column per row
        forward = sum(per_input * (width + self.H) for width in self.widths)
        if self.mode != TRAIN:
            return forward
        return 3 * forward - (0 if self.needs_dx else per_input * self.I)

    @property
    def bytes(self) -> int:
        """What one pass must move if each tensor is read or written once; states are not counted.

        x and the weights are read, y is written; for a backward every layer's gates, c and h (the last one's
        is y) are written too. The backward reads these and dy, and writes dweights and dx where it is needed.
        """
        size, rows = self.torch_dtype.itemsize, self.T * self.B
        x, y = size * rows * self.I, size * rows * self.D * self.H
        weights = size * self.D * sum(4 * self.H * (width + self.H + 2) for width in self.widths)
        saved = self.L * self.saved_bytes_allowed
        forward = x + weights + (y if self.mode == INFER else saved)
        if self.mode != TRAIN:
            return forward
        return forward + saved + y + weights + (x if self.needs_dx else 0)

    @property
    def saved_bytes_allowed(self) -> int:
        """Gates and h in the dtype, and c in the dtype of the arithmetic, of one layer."""
        size = self.torch_dtype.itemsize
        return self.T * self.B * self.D * self.H * (5 * size + max(size, 4))

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"flops": self.flops}


# The rows by which the layer's speed is judged, then sizes that users have.
TARGETS = [
    Row("2x512", 512, 2, 100, 100, 512),
    Row("2x512-bf16", 512, 2, 100, 100, 512, dtype="bfloat16"),
    Row("2x128", 128, 2, 50, 50, 128),
    Row("1x512-infer", 512, 1, 1, 100, 512, INFER),
]
GRID = [
    Row("2x512-dx", 512, 2, 100, 100, 512, needs_dx=True),
    Row("2x128-dx", 128, 2, 50, 50, 128, needs_dx=True),
    Row("tiny", 16, 1, 1, 100, 16),
    Row("tiny-wide-batch", 16, 1, 256, 100, 16),
    Row("min-char-rnn", 100, 1, 1, 25, 65),
    Row("char-rnn", 128, 2, 50, 50, 65),
    Row("char-rnn-3x512", 512, 3, 100, 50, 65),
    Row("char-rnn-3x512-infer", 512, 3, 100, 50, 65, INFER),
    Row("linux-3x700", 700, 3, 50, 50, 101),
    Row("char-rnn-one-char", 512, 2, 1, 1, 65, INFER),
    Row("cell-step", 32, 1, 1, 1, 32, INFER),
    Row("cell-step-batch", 256, 1, 256, 1, 256, INFER),
    Row("stream", 64, 1, 1, 1000, 40, INFER),
    Row("rl-rollout", 64, 1, 16, 1, 32, INFER),
    Row("rl-update", 128, 1, 256, 16, 64),
    Row("series", 50, 1, 32, 30, 7),
    Row("series-infer", 50, 1, 32, 30, 7, INFER),
    Row("series-2-layers", 64, 2, 64, 96, 7),
    Row("odd-33", 33, 1, 17, 31, 5),
    Row("odd-101", 101, 2, 7, 113, 13, needs_dx=True),
    Row("odd-257", 257, 1, 3, 50, 129, needs_dx=True),
    Row("tagger", 100, 1, 10, 50, 100, bidirectional=True, needs_dx=True),
    Row("tagger-infer", 256, 2, 32, 40, 300, INFER, bidirectional=True),
    Row("speech", 320, 3, 8, 200, 80, bidirectional=True),
    Row("ocr", 256, 2, 32, 32, 512, bidirectional=True, needs_dx=True),
    Row("encoder-forward", 256, 1, 64, 20, 256, FORWARD),
    Row("word-lm", 650, 2, 20, 35, 650, needs_dx=True),
    Row("1024", 1024, 1, 16, 50, 1024, needs_dx=True),
    Row("1024-one-stream", 1024, 1, 1, 50, 1024, INFER),
    Row("1024-forward", 1024, 1, 256, 10, 1024, FORWARD),
    Row("long-one-stream", 64, 1, 1, 1000, 64),
    Row("long", 128, 1, 8, 1000, 128),
    Row("long-forward", 256, 1, 4, 1000, 64, FORWARD),
    Row("2x128-bf16", 128, 2, 50, 50, 128, dtype="bfloat16", needs_dx=True),
    Row("256-bf16", 256, 1, 64, 100, 256, dtype="bfloat16", needs_dx=True),
    Row("odd-101-bf16", 101, 2, 7, 113, 13, dtype="bfloat16"),
    Row("tagger-bf16", 100, 1, 10, 50, 100, dtype="bfloat16", bidirectional=True),
    Row("1x512-infer-bf16", 512, 1, 1, 100, 512, INFER, "bfloat16"),
    Row("1024-forward-bf16", 1024, 1, 32, 50, 1024, FORWARD, "bfloat16"),
    Row("float64", 64, 1, 16, 50, 64, dtype="float64"),
]
# Sizes at which GPUs are compared, and some that a CPU takes seconds for.
WIDE = [
    Row("2x512-fp16", 512, 2, 100, 100, 512, dtype="float16"),
    Row("2x128-fp16", 128, 2, 50, 50, 128, dtype="float16"),
    Row("step-512-b16", 512, 1, 16, 1000, 512, FORWARD, "bfloat16"),
    Row("step-512-b64", 512, 1, 64, 1000, 512, FORWARD, "bfloat16"),
    Row("step-512-b128", 512, 1, 128, 1000, 512, FORWARD, "bfloat16"),
    Row("flashrnn", 768, 1, 16, 1024, 768, dtype="bfloat16"),
    Row("flashrnn-fp16", 768, 1, 16, 1024, 768, dtype="float16"),
    Row("flashrnn-fp16-forward", 768, 1, 16, 1024, 768, FORWARD, "float16"),
    Row("rl-large", 128, 1, 2048, 16, 128, dtype="bfloat16"),
    Row("speech-640", 640, 4, 16, 200, 640, dtype="bfloat16", bidirectional=True),
    Row("very-long", 64, 1, 1, 10_000, 64, FORWARD, "bfloat16"),
    Row("1024-bf16", 1024, 1, 64, 100, 1024, dtype="bfloat16"),
    Row("2048-bf16", 2048, 1, 32, 50, 2048, dtype="bfloat16"),
]
ROWS = {row.name: row for row in (*TARGETS, *GRID, *WIDE)}
# Names for several rows; for a GPU the most telling come first, since time may end before the rows do.
SETS = {
    "all": list(ROWS),
    "quick": ["2x128", "1x512-infer", "series", "rl-rollout"],
    "rivals": ["2x512-bf16", "flashrnn-fp16", "2x512", "flashrnn", "rl-update"],  # others' code on a GPU
    "pg": ["2x512-bf16", "2x512-fp16", "2x512"],
    "gpu": [
        "2x512-bf16", "flashrnn-fp16", "step-512-b64", "2x128-bf16", "2x512", "flashrnn-fp16-forward",
        "flashrnn", "step-512-b16", "step-512-b128", "2x512-fp16", "2x128", "2x128-fp16", "rl-large",
        "1024-bf16", "speech-640", "very-long", "2048-bf16", "1x512-infer-bf16", "256-bf16",
        "tagger-bf16", "odd-101-bf16",
        "char-rnn", "char-rnn-3x512", "linux-3x700", "rl-update", "series", "tagger", "ocr",
        "word-lm", "1024", "long",
    ],
}  # fmt: skip
