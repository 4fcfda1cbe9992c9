"""Beam search: the likeliest text of a given length, as far as a few candidates side by side can tell."""

import torch
from torch import Tensor

from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.sample import Model, Text, Unknown, Written, read, start
from fusedlstm.charlm.vocab import Vocab


def write_likeliest(
    model: CharLM, vocab: Vocab, prime: str | bytes, length: int, width: int, unknown: Unknown = "error"
) -> tuple[Written, float]:
    """The likeliest text after the prime text, and the natural logarithm of its probability.

    Args:
        model: in eval mode.
        vocab: of the model.
        prime: text to start from; without it the model starts a line of its own.
        length, width: as for beam.
        unknown: what happens to characters of the prime text that the model has never seen.

    Raises:
        CharLMError: when the prime text does not serve.
    """
    ids = vocab.encode(prime, unknown)
    text = Text(vocab, ids)
    found, log_probability = beam(model, start(model, vocab, ids, 1), length, width)
    return Written(text.prime, text.take(found.tolist()) + text.end(), stopped=False), log_probability


@torch.inference_mode()
def beam(model: Model, ids: Tensor, length: int, width: int) -> tuple[Tensor, float]:
    """Searches for the text with the highest probability; the same arguments give the same text.

    Args:
        model: a CharLM in eval mode, or what is called like one.
        ids: characters to start from [T, 1], int64, on the model's device.
        length: characters to write, at least 1.
        width: candidates K that are kept at each character; 1 always takes the likeliest character.

    Returns:
        The characters [length], int64, and the natural logarithm of their probability.
    """
    logits, state = read(model, ids)
    scores = torch.zeros(1, dtype=torch.float64, device=ids.device)  # one candidate so far
    parents, letters = [], []  # of the candidates at each character [K]
    for place in range(length):
        V = logits.shape[1]
        totals = (scores[:, None] + logits.double().log_softmax(1)).flatten()
        # Of equals the first comes first: topk would not say which.
        scores, best = (part[:width] for part in totals.sort(descending=True, stable=True))
        parents.append(best // V)
        letters.append(best % V)
        if place + 1 < length:
            state = tuple(part.index_select(1, parents[-1]) for part in state)
            after, state = model(letters[-1][None], state)
            logits = after[-1]
    text, at = [], torch.zeros(1, dtype=torch.int64, device=ids.device)  # the best one, from its end on
    for parent, letter in zip(reversed(parents), reversed(letters), strict=True):
        text.append(letter[at])
        at = parent[at]
    return torch.cat(text[::-1]), scores[0].item()
