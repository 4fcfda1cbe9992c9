"""The settings of a run: one dataclass is trainer's input, checkpoint's record and, by its fields, flags."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch


class CharLMError(Exception):
    """Something that the user can mend; the command line prints it as one line, without a traceback."""


@dataclass(frozen=True)
class Settings:
    """How to train one character model.

    Raises:
        CharLMError: when a value is out of range; the message names it.
    """

    file: str = ""
    """Text to train on: any file, in any language (its bytes are the vocabulary). Without it: --data."""
    data: str = "stdlib"
    """A known text (stdlib, shakespeare, bible, tinyshakespeare, warandpeace, names) or a URL."""
    out: str = ""
    """Folder for the checkpoint; by default runs/NAME-OF-THE-TEXT."""

    rnn_size: int = 256
    """Hidden units in each layer."""
    num_layers: int = 2
    """LSTM layers."""
    dropout: float = 0.0
    """Share of each layer's outputs dropped while training; about 0.2 suits a text read many times over."""

    seq_length: int = 32
    """Characters that one gradient reaches back (the state itself is carried on)."""
    batch_size: int = 64
    """Streams of text read side by side."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """How gradients become steps."""
    learning_rate: float = 6e-3
    """Step size at the start; it falls to zero along a cosine."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together."""
    minutes: float = 10.0
    """Training time, with pauses for validation and samples, over all resumptions."""
    steps: int | None = None
    """Train this many steps instead of by the clock."""
    val_fraction: float = 0.05
    """Share of the text, at its end, kept for validation; 0 for none."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto takes bfloat16 where the processor has it. Parameters stay float32."""
    seed: int = 1
    """Seed of the weights, the dropout and the samples."""

    save_every: int = 1000
    """Steps between validation, sample and checkpoint (early on also at 100, 200, 400, ...)."""
    sample_length: int = 300
    """Characters of each sample printed while training."""
    temperature: float = 0.8
    """Temperature of these samples."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """Settings from a checkpoint's record."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise CharLMError(f"settings {sorted(unknown)} are not known to this version of fusedlstm")
        return cls(**values)

    def autocast_dtype(self) -> torch.dtype:
        """The dtype of the arithmetic, with auto decided."""
        name = ("bfloat16" if has_bfloat16() else "float32") if self.dtype == "auto" else self.dtype
        return torch.bfloat16 if name == "bfloat16" else torch.float32


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (a private name of torch, hence the care)."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


Rule = tuple[Callable[[Any], bool], str]  # what holds for a good value, and that in words


def check(name: str, value: object, rule: Rule) -> None:
    """Raises CharLMError, naming the flag, when a value breaks its rule."""
    holds, expected = rule
    if not holds(value):
        raise CharLMError(f"--{name.replace('_', '-')} must be {expected}, got {value!r}")


COUNT: Rule = (lambda v: isinstance(v, int) and v >= 1, "a whole number, at least 1")
POSITIVE: Rule = (lambda v: 0 < v < math.inf, "a finite number above 0")
SHARE: Rule = (lambda v: 0 <= v < 1, "at least 0 and below 1")
RULES: dict[str, Rule] = {
    "rnn_size": COUNT,
    "num_layers": COUNT,
    "dropout": SHARE,
    "seq_length": COUNT,
    "batch_size": COUNT,
    "optimizer": (lambda v: v in ("adam", "rmsprop"), "adam or rmsprop"),
    "learning_rate": POSITIVE,
    "grad_clip": POSITIVE,
    "minutes": POSITIVE,
    "steps": (lambda v: v is None or COUNT[0](v), COUNT[1]),
    "val_fraction": SHARE,
    "dtype": (lambda v: v in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
    "seed": (lambda v: isinstance(v, int) and abs(v) < 2**63, "a whole number of 64 bits"),
    "save_every": COUNT,
    "sample_length": (lambda v: isinstance(v, int) and v >= 0, "a whole number, at least 0"),
    "temperature": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
}

# What --resume may not change: it is in the weights or in the position in the text (that is compared, too).
FIXED = ("out", "rnn_size", "num_layers", "seq_length", "batch_size", "optimizer", "val_fraction", "seed")
