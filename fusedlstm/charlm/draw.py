"""The draw of the next character: from logits to probabilities, by temperature and filters, to one id."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedlstm.charlm.settings import NOT_NEGATIVE, Rule, check

RULES: dict[str, Rule] = {
    "temperature": NOT_NEGATIVE,
    "top_k": (lambda v: type(v) is int and 0 <= v < 2**31, "a whole number, at least 0 and below 2**31"),
    "top_p": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "min_p": (lambda v: 0 <= v <= 1, "at least 0 and at most 1"),
}


@dataclass(frozen=True)
class Filters:
    """Which characters may be drawn at all; one after the other, each on what the one before has left.

    Args:
        top_k: the k likeliest; 0 for all.
        top_p: the fewest of the likeliest that together have this share of the probability; 1 for all.
        min_p: those at least this many times as likely as the likeliest; 0 for all.

    Raises:
        CharLMError: when a value is out of range.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(name, value, RULES[name])


ALL = Filters()


def probabilities(logits: Tensor, temperature: float, filters: Filters = ALL) -> Tensor:
    """With what probability each character is drawn.

    Args:
        logits: of the next character [B, V].
        temperature: below 1 surer, above 1 wilder; 0 gives all to the likeliest (of equals the lowest id).
        filters: what may be drawn, of equals the lower ids first.

    Returns:
        Probabilities [B, V], float64, which is wide enough for any temperature.
    """
    logits = logits.double()
    if temperature == 0:
        return F.one_hot(logits.argmax(1), logits.shape[1]).double()
    # The largest logit is taken off first: dividing by a tiny temperature then gives -inf, never nan.
    p = ((logits - logits.amax(1, keepdim=True)) / temperature).softmax(1)
    if filters == ALL:
        return p
    ranked, ids = p.sort(dim=1, descending=True, stable=True)
    if filters.top_k:
        ranked[:, filters.top_k :] = 0
    if filters.top_p < 1:
        sums = ranked.cumsum(1)
        likelier = F.pad(sums[:, :-1], (1, 0))  # what those before a character have together
        ranked = ranked.where(likelier < filters.top_p * sums[:, -1:], 0)
    ranked = ranked.where(ranked >= filters.min_p * ranked[:, :1], 0)
    return torch.zeros_like(p).scatter(1, ids, ranked / ranked.sum(1, keepdim=True))


def drawn(logits: Tensor, temperature: float, filters: Filters, generator: torch.Generator) -> Tensor:
    """The next character of each stream [B], int64, on the device of the logits [B, V]."""
    if temperature == 0:
        return logits.argmax(1)
    return torch.multinomial(probabilities(logits, temperature, filters), 1, generator=generator)[:, 0]
