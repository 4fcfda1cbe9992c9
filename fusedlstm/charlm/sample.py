"""Writing: what a model makes of a beginning, character after character, in one text or in several."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.draw import ALL, Filters, drawn
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.vocab import Unknown, Vocab

Model = Callable[[Tensor, State | None], tuple[Tensor, State]]
Precision = Literal["float32", "bfloat16", "int8"]
READ = 1024  # characters read in one pass: their logits take V times as much memory
AT_ONCE = 64  # characters made between two looks at them, once the first are shown


def load_model(run: str | Path, which: str | int = "last") -> tuple[CharLM, Vocab]:
    """The model of a run, ready to write (float32, on the CPU), and its vocabulary.

    Args:
        run: its folder.
        which: its checkpoint: last, best or a step.

    Raises:
        CharLMError: when the run holds no such checkpoint, or a damaged one.
    """
    saved = checkpoint.load(run, which)
    model = CharLM.from_settings(saved.settings, len(saved.vocab))
    try:
        model.load_state_dict(saved.part("ema.") or saved.part("model."))
    except RuntimeError as error:
        raise CharLMError(f"{run} is damaged: {' '.join(str(error).split())}") from None
    return model.eval(), saved.vocab


def write(
    model: CharLM,
    vocab: Vocab,
    prime: str | bytes,
    length: int | None,
    temperature: float,
    seed: int | None = None,
    filters: Filters = ALL,
    unknown: Unknown = "error",
    stops: Sequence[str] = (),
    precision: Precision = "float32",
) -> Iterator[str]:
    """The prime text and then what the model makes of it, in pieces as they come.

    Args:
        model: in eval mode.
        vocab: of the model.
        prime: text to start from; without it the model starts a line of its own.
        length: characters to write after it; None never ends.
        temperature: below 1 surer, above 1 wilder, 0 always the likeliest character.
        seed: for the same text again.
        filters: which characters may be drawn.
        unknown: what happens to characters of the prime text that the model has never seen.
        stops: texts that end the writing, before the first of them; that in the prime text does not count.
        precision: of the weights.

    Raises:
        CharLMError: when the prime text or the precision does not serve.
    """
    ids = vocab.encode(prime, unknown)
    text = Text(vocab, ids, stops)
    parts = chunks(model, start(model, vocab, ids, 1), temperature, seed, filters, precision, length)

    def pieces() -> Iterator[str]:
        yield text.prime
        for part in parts:
            yield text.take(part[:, 0].tolist())
            if text.stopped:
                return
        yield text.end()

    return pieces()


@dataclass(frozen=True)
class Written:
    """A text that is done: what it started from, what the model wrote, and whether a stop string ended it."""

    prime: str
    text: str
    stopped: bool


def write_many(
    model: CharLM,
    vocab: Vocab,
    prime: str | bytes,
    length: int,
    temperature: float,
    seed: int | None = None,
    filters: Filters = ALL,
    unknown: Unknown = "error",
    stops: Sequence[str] = (),
    precision: Precision = "float32",
    samples: int = 1,
) -> list[Written]:
    """Several texts from one beginning, written side by side; all else is as for write."""
    ids = vocab.encode(prime, unknown)
    texts = [Text(vocab, ids, stops) for _ in range(samples)]
    pieces: list[list[str]] = [[] for _ in texts]
    first = start(model, vocab, ids, samples)
    for part in chunks(model, first, temperature, seed, filters, precision, length):
        for b, column in enumerate(part.T.tolist()):
            pieces[b].append(texts[b].take(column))
        if all(text.stopped for text in texts):
            break
    return [
        Written(text.prime, "".join(parts) + text.end(), text.stopped)
        for text, parts in zip(texts, pieces, strict=True)
    ]


class Text:
    """A text in the making: ids become characters, up to the first of the stop strings.

    Args:
        vocab: of the ids.
        prime: ids that it starts from.
        stops: what ends it, itself left out. Of several the one that is complete first counts, so that the
            pieces in which a text comes make no difference.
    """

    def __init__(self, vocab: Vocab, prime: np.ndarray, stops: Sequence[str] = ()) -> None:
        self.decoder = vocab.decoder()
        self.prime = self.decoder.piece(prime.tolist())
        self.stops = stops
        self.held = ""  # the end of what came, which may be the beginning of a stop string
        self.stopped = False

    def take(self, ids: Sequence[int]) -> str:
        """The next ids; returns the characters that are certain by now."""
        return self._pass(self.decoder.piece(ids))

    def end(self) -> str:
        """The characters that were held back; nothing more comes."""
        rest = self._pass(self.decoder.end())
        return rest + self.held

    def _pass(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self.held + piece
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self.stops if stop in text]
        if found:
            self.held, self.stopped = "", True
            return text[: min(found)[1]]
        begun = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        certain = len(text) - max(begun, default=0)
        self.held = text[certain:]
        return text[:certain]


class Writer(Protocol):
    """What keeps the state to itself and makes many characters a call: fusedlstm.generate.Generator."""

    def read(self, ids: Tensor) -> object:
        """Takes in characters [T, B]."""

    def generate(self, count: int, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
        """The next characters [count, B]."""


def chunks(
    model: Model,
    ids: Tensor,
    temperature: float,
    seed: int | None = None,
    filters: Filters = ALL,
    precision: Precision = "float32",
    length: int | None = None,
) -> Iterator[Tensor]:
    """The characters after the given ones, by the native generator where it serves, else by ids_after.

    Args:
        length: characters of each stream; None never ends. The rest is as for ids_after and write.

    Returns:
        Characters [n, B]: n grows from 1, so that the first show at once, to AT_ONCE.

    Raises:
        CharLMError: when the precision is not to be had.
    """
    writer = generator_of(model, ids.shape[1], seed, precision)

    def parts() -> Iterator[Tensor]:
        if writer:
            writer.read(ids)
        else:
            rows = ids_after(model, ids, temperature, seed, filters)
        n, left = 1, math.inf if length is None else length
        while left > 0:
            n = int(min(n, left))
            yield (
                writer.generate(n, temperature, **vars(filters))
                if writer
                else torch.cat(list(islice(rows, n)))
            )
            n, left = min(2 * n, AT_ONCE), left - n

    return parts()


def generator_of(model: Model, B: int, seed: int | None, precision: Precision) -> Writer | None:
    """The native generator with the weights of a model, or nothing where it does not serve.

    It knows LSTM layers, one-hot or embedded characters and the CPU.

    Args:
        B: streams side by side.
        seed, precision: as for write.

    Raises:
        CharLMError: when it does not serve and the precision is only to be had from it.
    """
    if isinstance(model, CharLM) and model.kind == "lstm" and model.plain:
        decoder = model.decoder
        if decoder.weight.device.type == "cpu":
            from fusedlstm.generate import Generator

            weights, embedding = model.lstm.all_weights, decoder.weight if model.tied else None
            if model.embedding is not None:
                embedding = model.embedding.weight
            return Generator(weights, decoder.weight, decoder.bias, B, precision, seed, embedding=embedding)
    if precision != "float32":
        raise CharLMError(f"--precision must be float32 but for LSTM layers on a CPU, got {precision}")
    return None


@torch.inference_mode()
def ids_after(
    model: Model, ids: Tensor, temperature: float, seed: int | None = None, filters: Filters = ALL
) -> Iterator[Tensor]:
    """Characters without end: reads the given ones, then what it wrote, the state carried on.

    Args:
        model: a CharLM in eval mode, or what is called like one.
        ids: characters to start from [T, B], int64, on the model's device.
        temperature: as write takes it.
        seed: for the same characters again.
        filters: which characters may be drawn.

    Returns:
        The next character of each stream [1, B], as long as it is asked; nothing waits for the device.
    """
    generator = torch.Generator(ids.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    logits, state = read(model, ids)
    while True:
        ids = drawn(logits, temperature, filters, generator)[None]
        yield ids
        last, state = model(ids, state)
        logits = last[-1]


def read(model: Model, ids: Tensor) -> tuple[Tensor, State]:
    """The logits [B, V] of the character after the given ones [T, B], and the state there."""
    state: State | None = None
    for part in ids.split(READ):
        logits, state = model(part, state)
    assert state is not None  # T is at least 1
    return logits[-1], state


def start(model: CharLM, vocab: Vocab, prime: np.ndarray, B: int) -> Tensor:
    """What each stream reads first [T, B]: the prime text, or the end of a line."""
    ids = prime.astype(np.int64) if len(prime) else np.array([max(vocab.symbols.find("\n"), 0)])
    return torch.from_numpy(ids)[:, None].repeat(1, B).to(next(model.parameters()).device)
