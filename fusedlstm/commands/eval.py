"""`fusedlstm eval`: how well a trained model predicts a text."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from tyro.conf import Positional, arg

from fusedlstm.charlm import checkpoint, corpus
from fusedlstm.charlm.evaluate import dynamic, gradient_sizes, whole
from fusedlstm.charlm.report import bits
from fusedlstm.charlm.sample import load_model
from fusedlstm.charlm.settings import COUNT, NOT_NEGATIVE, SHARE, CharLMError, Settings, check
from fusedlstm.charlm.streams import Streams
from fusedlstm.charlm.vocab import Vocab

DYNAMIC_T = 20  # characters between two steps of the weights
LEARNT = 20_000  # characters of the training text that tell how large gradients are


@dataclass(frozen=True)
class Eval:
    """Measure how well a trained model predicts a text, in float32."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run."""
    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILES")] = ()
    """Texts to read, each by itself; without any, a part of the run's own text."""
    split: Literal["val", "test", "train", "all"] = "val"
    """Which part of the run's own text."""
    unknown: Literal["error", "skip", "replace"] = "error"
    """What becomes of characters in FILES that the model has never seen."""
    streams: int = 32
    """Stretches of a text read side by side, each from 1,000 characters before those that count."""
    dynamic: bool = False
    """Let the weights learn on from what they have read, in one stream (dynamic evaluation)."""
    dynamic_rate: float = 3e-4
    """Size of their steps, one every 20 characters."""
    dynamic_decay: float = 3e-3
    """Share of the way back to the trained weights at each step."""
    json: bool = False
    """Print one JSON object for each text."""

    def __post_init__(self) -> None:
        check("streams", self.streams, COUNT)
        check("dynamic_rate", self.dynamic_rate, NOT_NEGATIVE)
        check("dynamic_decay", self.dynamic_decay, SHARE)

    def __call__(self) -> None:
        device = Settings().torch_device()
        model, vocab = load_model(self.run)
        model.to(device)

        def alone(ids: np.ndarray) -> Streams:
            return Streams(ids, len(ids) if ids.ndim == 2 else 1, device)

        if self.dynamic:
            sizes = gradient_sizes(model, alone(self._part("train")), DYNAMIC_T, torch.float32, LEARNT)
        for name, ids in self._texts(vocab):
            targets = ids.size - (len(ids) if ids.ndim == 2 else 1)
            if targets < 1:
                raise CharLMError(f"{name} must have at least 2 characters to evaluate on, got {ids.size}")
            began = time.perf_counter()
            if self.dynamic:
                how = self.dynamic_rate, self.dynamic_decay, sizes
                loss = dynamic(model, alone(ids), DYNAMIC_T, torch.float32, *how)
            else:
                loss = whole(model, ids, self.streams, torch.float32, device)
            print(self._line(name, loss, targets, time.perf_counter() - began))

    def _texts(self, vocab: Vocab) -> Iterator[tuple[str, np.ndarray]]:
        """The texts by name, as ids."""
        if not self.files:
            yield f"{self.split} of {self.run}", self._part(self.split)
        for file in self.files:
            try:
                text = Path(file).read_bytes()
            except OSError as error:
                raise CharLMError(f"cannot read {file}: {error.strerror}") from None
            yield file, vocab.encode(text, self.unknown)

    def _part(self, name: str) -> np.ndarray:
        """A part of the text that the model was trained on, as Streams takes it."""
        saved = checkpoint.load(self.run)
        text = corpus.load(saved.settings)
        if text.sha256 != saved.text_sha256:
            raise CharLMError(f"the text of {self.run} must be what it was, got another ({text.name})")
        return text.ids if name == "all" else getattr(text.split(saved.settings), name)

    def _line(self, name: str, nats: float, characters: int, seconds: float) -> str:
        """What is printed of one text."""
        perplexity = math.exp(nats)
        if self.json:
            figures = {"nats_per_char": nats, "bits_per_char": bits(nats), "perplexity": perplexity}
            return json.dumps({"text": name, **figures, "characters": characters, "seconds": seconds})
        loss = f"{nats:.4f} nats/char, {bits(nats):.4f} bits/char, perplexity {perplexity:.3f} a char"
        return f"{name}: {loss}; {characters:,} characters in {seconds:.1f} s"
