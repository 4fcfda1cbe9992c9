"""The n-gram baseline: interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1999) over ids.

    p(w | h) = (c(hw) - D(c(hw))) / c(h.) + sum_w D(c(hw)) / c(h.) * p(w | h without its first symbol)

The longest n-grams count how often they occur, shorter ones how many different symbols come before them; D
takes off one amount from counts of 1, one from 2, one from more. Below single symbols lies the uniform
distribution.

An n-gram is one number: the place of all but its last symbol among the shorter ones, times V, plus the last
symbol. The numbers of one length, ascending, are a level of a trie; bisection finds those of a whole text at
once.
"""

from dataclasses import dataclass, replace

import numpy as np

from fusedlstm.charlm.settings import CharLMError

NO_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])  # where a text is too small to tell them


@dataclass(frozen=True)
class Level:
    """The different n-grams of one length; a place is an index into them, -1 of what was never seen."""

    keys: np.ndarray  # [G] int64, ascending: place of the context one level up * V + last symbol
    counts: np.ndarray  # [G] how often each occurs
    continued: np.ndarray  # [G] how many different symbols come before each; empty for the longest

    def find(self, contexts: np.ndarray, symbols: np.ndarray, V: int) -> np.ndarray:
        """Places of contexts, by their places one level up, with a symbol behind each."""
        wanted = contexts * V + symbols  # of a context never seen below 0, so never found
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, places, -1)


class NGram:
    """Counts of a text, for models of every order up to one.

    Args:
        ids: the text [N], ids below V.
        V: size of the vocabulary.
        order: symbols of the longest n-gram; it sees one less before the symbol that it predicts.

    Raises:
        CharLMError: when the text is shorter than that.
    """

    def __init__(self, ids: np.ndarray, V: int, order: int) -> None:
        if not 1 <= order <= len(ids):
            raise CharLMError(f"the order must be 1 to {len(ids):,}, the length of the text, got {order}")
        self.V = V
        self.levels: list[Level] = []
        places = np.zeros(
            len(ids) + 1, np.int64
        )  # of the n-gram that starts at each symbol; first the empty one
        for n in range(order):
            shorter = places
            keys, first, places, counts = np.unique(
                shorter[:-1] * V + ids[n:], return_index=True, return_inverse=True, return_counts=True
            )
            if self.levels:
                # Each of these, without its first symbol, is one more continuation of a shorter one.
                last = self.levels[-1]
                ends = np.bincount(shorter[first + 1], minlength=len(last.keys))
                self.levels[-1] = replace(last, continued=ends)
            self.levels.append(Level(keys, counts, counts[:0]))

    def losses(self, ids: np.ndarray) -> np.ndarray:
        """Nats of each symbol of a text after those before it.

        Args:
            ids: one text [T], or several side by side [T, B].

        Returns:
            By order, from 1: [order, T] or [order, T, B]. Where the text before a symbol is shorter than a
            context, or was never seen, the loss is that of the next shorter one.
        """
        nats = np.empty((len(self.levels), *ids.shape))
        lower = np.full(ids.shape, 1 / self.V)  # probabilities by continuations, one order down
        places, contexts = np.zeros((len(ids) + 1, *ids.shape[1:]), np.int64), 1
        for n, level in enumerate(self.levels):
            before, places = places[:-1], level.find(places[:-1], ids[n:], self.V)
            mixed = lower.copy()
            mixed[n:] = self._mixed(level.keys, level.counts, contexts, before, places, lower[n:])
            nats[n] = -np.log(mixed)
            if len(level.continued):
                lower[n:] = self._mixed(level.keys, level.continued, contexts, before, places, lower[n:])
            contexts = len(level.keys)
        return nats

    def _mixed(
        self,
        keys: np.ndarray,
        counts: np.ndarray,
        contexts: int,
        before: np.ndarray,
        places: np.ndarray,
        lower: np.ndarray,
    ) -> np.ndarray:
        """Probabilities of n-grams by their discounted counts, and by the lower order with what that leaves.

        Args:
            contexts: how many there are one level up.
            before, places: of the contexts one level up, and of the n-grams.
            lower: probabilities one order down.
        """
        parents = keys // self.V
        taken = discounts(counts)[np.minimum(counts, 3)]
        totals = np.bincount(parents, counts, contexts)
        totals[totals == 0] = np.inf  # only the start of the text has no continuations: as if never seen
        share = (counts - taken) / totals[parents]
        rest = np.where(totals < np.inf, np.bincount(parents, taken, contexts) / totals, 1.0)
        # What was never seen, at place -1: no share, and all of the rest.
        return np.append(share, 0.0)[places] + np.append(rest, 1.0)[before] * lower


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off counts of 0, 1, 2, and 3 or more [4]: Chen and Goodman's estimate from the counts."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(float)  # how many counts of 0 to 4
    if not n[1:].all():
        return NO_DISCOUNTS
    share = n[1] / (n[1] + 2 * n[2])
    estimate = np.arange(4) - share * np.array([0, 2, 3, 4]) * np.array([0, *(n[2:] / n[1:-1])])
    return estimate if (estimate[1:] > 0).all() else NO_DISCOUNTS
