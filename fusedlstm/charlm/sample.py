"""Writing text, one character at a time."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.settings import CharLMError


def load_model(run: str | Path) -> tuple[CharLM, bytes]:
    """The model of a run, ready to write (float32), and its vocabulary.

    Raises:
        CharLMError: when the run holds no checkpoint, or a damaged one.
    """
    saved = checkpoint.load(run)
    model = CharLM(len(saved.vocab), saved.settings.rnn_size, saved.settings.num_layers)
    try:
        model.load_state_dict(saved.part("model."))
    except RuntimeError as error:
        raise CharLMError(f"{run} is damaged: {' '.join(str(error).split())}") from None
    return model.eval(), saved.vocab


def write(
    model: CharLM, vocab: bytes, prime: bytes, length: int, temperature: float, seed: int | None = None
) -> Iterator[str]:
    """The prime text and then what the model makes of it, in pieces as they come.

    Args:
        model: in eval mode.
        vocab: id -> byte.
        prime: text to start from; without it the model starts a line of its own.
        length: characters to write after it.
        temperature: below 1 surer, above 1 wilder, 0 always the likeliest character.
        seed: for the same text again.

    Raises:
        CharLMError: when the prime text has characters that the model has never seen.
    """
    id_of = {byte: i for i, byte in enumerate(vocab)}
    unseen = sorted(set(prime) - set(id_of))
    if unseen:
        names = ", ".join(f"{chr(b)!r}" if 32 <= b < 127 else f"byte {b:#04x}" for b in unseen)
        raise CharLMError(f"the prime text must use characters of the training text, got others: {names}")
    start = [id_of[byte] for byte in prime] or [id_of.get(ord("\n"), 0)]
    written = islice(ids_after(model, torch.tensor(start)[:, None], temperature, seed), length)
    return _decode(prime, (vocab[int(ids)] for ids in written))


@torch.inference_mode()
def ids_after(
    model: Callable[[Tensor, State | None], tuple[Tensor, State]],
    ids: Tensor,
    temperature: float,
    seed: int | None = None,
) -> Iterator[Tensor]:
    """Characters without end: reads the given ones in one pass, then what it wrote, the state carried on.

    Args:
        model: a CharLM in eval mode, or what is called like one.
        ids: characters to start from [T, B], int64, on the model's device.
        temperature: as write takes it.
        seed: for the same characters again.

    Returns:
        The next character of each stream [1, B], as long as it is asked.
    """
    generator, state = torch.Generator(ids.device), None
    generator.seed() if seed is None else generator.manual_seed(seed)
    while True:
        logits, state = model(ids, state)
        last = logits[-1].double()  # [B, V]; wide enough for any temperature
        if temperature == 0:
            ids = last.argmax(1)[None]
        else:
            # The largest logit is taken off first: dividing by a tiny temperature then gives -inf, never nan.
            logits = (last - last.amax(1, keepdim=True)) / temperature
            ids = torch.multinomial(logits.softmax(1), 1, generator=generator).T
        yield ids


def _decode(prime: bytes, written: Iterable[int]) -> Iterator[str]:
    """UTF-8 as its bytes come in; what is no UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    yield decoder.decode(prime)
    for byte in written:
        if piece := decoder.decode(bytes((byte,))):
            yield piece
    yield decoder.decode(b"", final=True)
