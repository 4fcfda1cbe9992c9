"""The settings of a run: one dataclass is trainer's input, checkpoint's record, TOML file and flags."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import tomlkit
import torch


class CharLMError(Exception):
    """Something that the user can mend; the command line prints it as one line, without a traceback."""


@dataclass(frozen=True)
class Settings:
    """How to train one character model.

    Raises:
        CharLMError: when a value is out of range; the message names it.
    """

    files: tuple[str, ...] = ()
    """Texts to train on: files in any language, or folders (see glob). Without any: --data."""
    glob: str = "**/*"
    """Which files of a folder are read, in the order of their names."""
    data: str = "stdlib"
    """A known text (stdlib, shakespeare, bible, tinyshakespeare, warandpeace, names) or a URL."""
    vocab: Literal["bytes", "chars"] = "bytes"
    """What one id stands for: a byte, or a character of a text in UTF-8."""
    split: str = "contiguous"
    """What is kept for validation: contiguous (val_fraction, at the end), charrnn (val_fraction, the end of
    each stream), nanogpt (the last tenth), or sizes for training, validation and test: 96M/4M, 80/10/10."""
    val_fraction: float = 0.05
    """Share of the text kept for validation by the splits contiguous and charrnn; 0 for none."""
    out: str = ""
    """Folder for the run; by default runs/NAME-OF-THE-TEXT."""

    model: Literal["lstm", "gru", "rnn"] = "lstm"
    """Kind of the layers."""
    rnn_size: int = 256
    """Hidden units in each layer."""
    num_layers: int = 2
    """Layers."""
    embedding: int = 0
    """Width of a learnt embedding of the characters; 0 reads them one-hot."""
    tied: bool = False
    """The decoder's weights are those of the embedding, which must be as wide as a layer."""
    dropout: float = 0.0
    """Share of each layer's outputs dropped while training; about 0.2 suits a text read many times over."""
    variational: bool = False
    """Dropout keeps its mask over the steps of a chunk."""
    recurrent_dropout: float = 0.0
    """Share of h dropped on its way to the next step, one mask a chunk (leaves the fused kernels)."""
    weight_drop: float = 0.0
    """Share of the recurrent weights dropped, one mask a step of the optimizer (DropConnect)."""
    zoneout: float = 0.0
    """Share of h and c that stay as they were at a step (leaves the fused kernels)."""
    init_range: float = 0.0
    """Weights start uniform in plus or minus this; 0 takes each layer's own start."""

    seq_length: int = 32
    """Characters that one gradient reaches back (the state itself is carried on)."""
    batch_size: int = 64
    """Streams of text read side by side."""
    accumulate: int = 1
    """Parts in which a batch goes through the network, one after the other, to save memory."""
    optimizer: Literal["adam", "adamw", "rmsprop"] = "adam"
    """How gradients become steps."""
    learning_rate: float = 6e-3
    """Step size at its highest."""
    schedule: Literal["cosine", "decay", "constant"] = "cosine"
    """How the step size falls: to zero along a cosine, by learning_rate_decay an epoch, or not."""
    warmup: int = 0
    """First steps, over which the step size rises from zero."""
    learning_rate_decay: float = 0.97
    """Factor an epoch of the schedule decay."""
    learning_rate_decay_after: float = 10.0
    """Epochs at full step size of the schedule decay."""
    decay_rate: float = 0.95
    """Memory of rmsprop's mean of squares."""
    weight_decay: float = 0.0
    """Pull of the weights towards zero."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together, or with clip value largest size of each."""
    clip: Literal["norm", "value"] = "norm"
    """What grad_clip holds down."""
    ema: float = 0.0
    """Decay a step of an average of the weights, which then validates and writes; 0 for none."""
    minutes: float = 10.0
    """Training time, with pauses for validation and samples, over all resumptions."""
    epochs: float | None = None
    """Train for so many readings of the text instead of by the clock."""
    steps: int | None = None
    """Train for so many steps instead of by the clock."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic; auto takes bfloat16 where the processor has it. Parameters stay float32."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, ...; auto takes a GPU where torch finds one."""
    seed: int = 1
    """Seed of the weights, the dropout and the samples."""

    save_every: int = 1000
    """Steps between validation, sample and checkpoint (early on also at 100, 200, 400, ...)."""
    sample_at: tuple[int, ...] = ()
    """Further steps at which to write a sample."""
    sample_length: int = 300
    """Characters of each sample written while training."""
    temperature: float = 0.8
    """Temperature of these samples."""
    tensorboard: bool = False
    """Write events for TensorBoard into the run's folder."""
    wandb: bool = False
    """Report to Weights & Biases."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)
        if self.tied and self.embedding != self.rnn_size:
            expected = f"--rnn-size {self.rnn_size} with --tied"
            raise CharLMError(f"--embedding must be {expected}, got {self.embedding}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Settings from a checkpoint's record or a TOML file."""
        return cls().but(values)

    def but(self, values: Mapping[str, Any]) -> "Settings":
        """These settings with some other values.

        Raises:
            CharLMError: when a name is not known, a value of the wrong type or out of range.
        """
        unknown = set(values) - {field.name for field in fields(self)}
        if unknown:
            raise CharLMError(f"settings {sorted(unknown)} are not known to this version of fusedlstm")
        return replace(self, **{name: _as_declared(name, value) for name, value in values.items()})

    @classmethod
    def from_toml(cls, file: str | Path) -> "Settings":
        """Settings from a TOML file of the names above; what it leaves out has its default.

        Raises:
            CharLMError: when the file cannot be read, or a value does not serve.
        """
        try:
            return cls.from_dict(tomlkit.parse(Path(file).read_text("utf-8")).unwrap())
        except (OSError, ValueError) as error:
            raise CharLMError(f"cannot read the settings in {file}: {error}") from None

    def to_toml(self) -> str:
        """The settings as a TOML file, but for those that are not given."""
        return tomlkit.dumps({name: value for name, value in asdict(self).items() if value is not None})

    def autocast_dtype(self) -> torch.dtype:
        """The dtype of the arithmetic, with auto decided."""
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        on_gpu = self.torch_device().type == "cuda"
        native = torch.cuda.is_bf16_supported() if on_gpu else has_bfloat16()
        return torch.bfloat16 if native else torch.float32

    def torch_device(self) -> torch.device:
        """The device, with auto decided.

        Raises:
            CharLMError: when it is not there.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            device = torch.device(name)
        except RuntimeError:
            raise CharLMError(f"--device must be auto, cpu or cuda, got {name!r}") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise CharLMError(f"--device {name} is not there: torch finds {torch.cuda.device_count()} GPUs")
        return device


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (a private name of torch, hence the care)."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _as_declared(name: str, value: Any) -> Any:
    """A value from JSON or TOML, which know no tuples, in the type of its field."""
    return tuple(value) if isinstance(value, list) else value


Rule = tuple[Callable[[Any], bool], str]  # what holds for a good value, and that in words


def check(name: str, value: object, rule: Rule) -> None:
    """Raises CharLMError, naming the flag, when a value breaks its rule."""
    holds, expected = rule
    try:
        good = holds(value)
    except TypeError:
        good = False
    if not good:
        raise CharLMError(f"--{name.replace('_', '-')} must be {expected}, got {value!r}")


def _whole(least: int) -> Rule:
    return (lambda v: type(v) is int and v >= least, f"a whole number, at least {least}")


def _or_none(rule: Rule) -> Rule:
    return (lambda v: v is None or rule[0](v), rule[1])


def _one_of(name: str) -> Rule:
    choices = get_args(get_type_hints(Settings)[name])
    words = ", ".join(choices[:-1]) + " or " + choices[-1]
    return (lambda v: v in choices, words)


COUNT: Rule = _whole(1)
POSITIVE: Rule = (lambda v: 0 < v < math.inf, "a finite number above 0")
NOT_NEGATIVE: Rule = (lambda v: 0 <= v < math.inf, "a finite number, at least 0")
SHARE: Rule = (lambda v: 0 <= v < 1, "at least 0 and below 1")
FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
TEXT: Rule = (lambda v: isinstance(v, str), "a text")
RULES: dict[str, Rule] = {
    "files": (lambda v: all(isinstance(f, str) for f in v) and not isinstance(v, str), "a list of files"),
    "glob": TEXT,
    "data": TEXT,
    "split": TEXT,
    "out": TEXT,
    "device": TEXT,
    **{name: _one_of(name) for name in ("vocab", "model", "optimizer", "schedule", "clip", "dtype")},
    **dict.fromkeys(
        ("rnn_size", "num_layers", "seq_length", "batch_size", "accumulate", "save_every"), COUNT
    ),
    **{name: _whole(0) for name in ("embedding", "warmup", "sample_length")},
    **dict.fromkeys(("tied", "variational", "tensorboard", "wandb"), FLAG),
    **dict.fromkeys(
        ("val_fraction", "dropout", "recurrent_dropout", "weight_drop", "zoneout", "ema", "decay_rate"), SHARE
    ),
    **dict.fromkeys(("learning_rate", "learning_rate_decay", "grad_clip", "minutes"), POSITIVE),
    **dict.fromkeys(("init_range", "learning_rate_decay_after", "weight_decay", "temperature"), NOT_NEGATIVE),
    "epochs": _or_none(POSITIVE),
    "steps": _or_none(COUNT),
    "seed": (lambda v: type(v) is int and abs(v) < 2**63, "a whole number of 64 bits"),
    "sample_at": (lambda v: all(COUNT[0](step) for step in v), "whole numbers, at least 1"),
}

# What --resume may not change: it is in the weights, in the optimizer, or in the position in the text.
FIXED = (
    "out", "vocab", "split", "val_fraction", "model", "rnn_size", "num_layers", "embedding", "tied",
    "seq_length", "batch_size", "optimizer", "ema", "seed",
)  # fmt: skip

# Whole recipes, by name: what differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # karpathy/char-rnn's train.lua
    "charrnn": {
        "split": "charrnn", "rnn_size": 128, "num_layers": 2, "init_range": 0.08, "seq_length": 50,
        "batch_size": 50, "optimizer": "rmsprop", "learning_rate": 2e-3, "schedule": "decay",
        "learning_rate_decay": 0.97, "learning_rate_decay_after": 10.0, "decay_rate": 0.95,
        "grad_clip": 5.0, "clip": "value", "epochs": 50.0,
        "dtype": "float32", "seed": 123,
    },
}  # fmt: skip
