"""The n-gram baseline: its probabilities are probabilities, and those of a slow dictionary."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from fusedlstm.charlm.ngram import NGram, discounts
from fusedlstm.charlm.settings import CharLMError

PROSE = b"""It was a bright cold day in April, and the clocks were striking thirteen. The hall was bright;
the day, cold. He was striking at the clocks in the cold hall. In April the day was as cold as thirteen bright
halls, and it was he who was in the hall that day, striking. """
RANDOM = bytes(np.random.default_rng(0).integers(0, 5, 3000, np.uint8))


def ids_of(text: bytes) -> tuple[np.ndarray, int]:
    vocab, ids = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    return ids.astype(np.uint8), len(vocab)


class Slow:
    """The same model of one order by the book: dictionaries, one symbol at a time."""

    def __init__(self, ids: np.ndarray, V: int, order: int) -> None:
        text, self.V, self.order = tuple(int(i) for i in ids), V, order
        grams = {n: Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, order + 1)}
        self.counts: dict[int, Counter[tuple[int, ...]]] = {order: grams[order]}
        for n in range(1, order):
            self.counts[n] = Counter(gram[1:] for gram in grams[n + 1])
        self.totals = {n: Counter[tuple[int, ...]]() for n in self.counts}
        self.after: dict[int, defaultdict[tuple[int, ...], list[int]]] = {}
        self.taken = {}
        for n, counts in self.counts.items():
            self.after[n] = defaultdict(list)
            for gram, count in counts.items():
                self.totals[n][gram[:-1]] += count
                self.after[n][gram[:-1]].append(count)
            self.taken[n] = self.estimate(Counter(counts.values()))

    @staticmethod
    def estimate(n: Counter[int]) -> tuple[float, ...]:
        if 0 in (n[1], n[2], n[3], n[4]):
            return 0, 0.5, 1, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        one, two = 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2]
        three = 3 - 4 * y * n[4] / n[3]
        return (0, one, two, three) if min(one, two, three) > 0 else (0, 0.5, 1, 1.5)

    def p(self, symbol: int, context: tuple[int, ...], n: int | None = None) -> float:
        n = min(self.order if n is None else n, len(context) + 1)
        if n == 0:
            return 1 / self.V
        context = context[len(context) - n + 1 :]
        lower = self.p(symbol, context[1:], n - 1) if n > 1 else 1 / self.V
        total = self.totals[n][context]
        if not total:
            return lower
        count, taken = self.counts[n][(*context, symbol)], self.taken[n]
        rest = sum(taken[min(c, 3)] for c in self.after[n][context])
        return (count - taken[min(count, 3)] + rest * lower) / total


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (PROSE * 3, PROSE[::-1]),
        (PROSE, b"A cold hall, striking; he was the day."),
        (b"abracadabra" * 5 + b"bracelet", b"candelabra relet"),
        (RANDOM, bytes(range(5)) * 9),
        (b"aaaaaaaaab", b"abba"),
    ],
)
def test_it_is_the_dictionary(text: bytes, other: bytes) -> None:
    ids, V = ids_of(text + other)
    train, test = ids[: len(text)], ids[len(text) :]
    losses = NGram(train, V, 6).losses(test)
    for order in range(1, 7):
        slow = Slow(train, V, order)
        # Where the test is younger than a context, an n-gram backs off to what the continuations say.
        expected = [
            slow.p(int(w), tuple(test[:t]), min(order, t + 1)) for t, w in enumerate(test) if t >= order - 1
        ]
        np.testing.assert_allclose(losses[order - 1, order - 1 :], -np.log(expected), rtol=1e-12)
        early = [slow.p(int(test[t]), tuple(test[:t]), t + 1) for t in range(min(order - 1, len(test)))]
        np.testing.assert_allclose(losses[order - 1, : order - 1], -np.log(early), rtol=1e-12)


def test_a_text_of_some_length_has_discounts_of_its_own() -> None:
    ids, V = ids_of(RANDOM)
    model = NGram(ids, V, 6)
    for counts in (model.levels[4].counts, model.levels[3].continued):
        assert tuple(discounts(counts)) != (0, 0.5, 1, 1.5)


def test_discounts_of_known_counts() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    np.testing.assert_allclose(discounts(counts), [0, 0.5, 1.25, 2.0])  # y = 8 / (8 + 2 * 4)
    np.testing.assert_array_equal(discounts(np.array([1, 1, 2])), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_for_every_context(order: int) -> None:
    ids, V = ids_of(b"the cat sat on the mat; that cat ate the hat" * 2)
    model = NGram(ids, V + 1, order)  # one symbol never occurs
    n = len(ids) - order + 2
    seen = np.array([ids[i : i + n] for i in range(order - 1)]).reshape(order - 1, n)
    random = np.random.default_rng(1).integers(0, V + 1, (order - 1, 500))
    every = list(product(range(V + 1), repeat=order - 1)) if order <= 3 else [(0,) * (order - 1)]
    for contexts in (seen, np.array(every, int).T, random):
        total = 0.0
        for w in range(V + 1):
            texts = np.concatenate([contexts, np.full((1, contexts.shape[1]), w)])
            total = total + np.exp(-model.losses(texts)[:, -1])
        np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_contexts_never_seen_back_off() -> None:
    ids, V = ids_of(PROSE)
    model = NGram(ids, V + 1, 4)
    text = np.array([V, *ids[40:43]])  # V never occurs, so a context with it was never seen
    known = NGram(ids, V + 1, 3)
    whole = model.losses(text)
    # The fourth symbol of order 4 is that of the continuations of order 3, not that of its counts.
    slow = Slow(ids, V + 1, 4)
    assert whole[3, 3] == pytest.approx(
        -math.log(slow.p(int(ids[42]), (int(ids[40]), int(ids[41])), 3)), rel=1e-12
    )
    assert whole[3, 3] != pytest.approx(known.losses(text)[2, 3], rel=1e-3)
    assert np.isfinite(whole).all()


def test_lower_orders_are_those_of_a_smaller_model() -> None:
    ids, V = ids_of(PROSE * 2)
    np.testing.assert_array_equal(NGram(ids, V, 7).losses(ids[:90])[:3], NGram(ids, V, 3).losses(ids[:90]))


def test_texts_side_by_side_are_texts_one_by_one() -> None:
    ids, V = ids_of(PROSE)
    model = NGram(ids, V, 4)
    columns = np.stack([ids[10:60], ids[100:150], ids[7:57]], axis=1)
    for b, column in enumerate(columns.T):
        np.testing.assert_array_equal(model.losses(columns)[:, :, b], model.losses(column))


def test_a_source_of_known_entropy() -> None:
    rng = np.random.default_rng(2)
    rows = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]])
    text = [0]
    for u in rng.random(60_000):
        text.append(int(np.searchsorted(rows[text[-1]].cumsum(), u)))
    ids = np.array(text, np.uint8)
    values, vectors = np.linalg.eig(rows.T)
    often = np.real(vectors[:, np.argmax(np.real(values))])
    entropy = -(often / often.sum()) @ (rows * np.log(rows)).sum(1)
    losses = NGram(ids[:50_000], 3, 3).losses(ids[50_000:]).mean(1)
    assert losses[0] > entropy + 0.1
    np.testing.assert_allclose(losses[1:], entropy, atol=0.02)


def test_a_text_shorter_than_its_contexts() -> None:
    ids, V = ids_of(PROSE)
    assert NGram(ids, V, 6).losses(ids[:2]).shape == (6, 2)
    with pytest.raises(CharLMError, match="order must be 1 to 5"):
        NGram(ids[:5], V, 6)
    with pytest.raises(CharLMError, match="got 0"):
        NGram(ids[:5], V, 0)
