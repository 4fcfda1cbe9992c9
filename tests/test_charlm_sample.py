"""The writer: what is drawn and how often, texts cut where they should be, beams, and lines that are new."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusedlstm.charlm import sample
from fusedlstm.charlm.beam import beam, write_likeliest
from fusedlstm.charlm.draw import ALL, Filters, drawn, probabilities
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.novelty import Novelty, lines_of, novelty
from fusedlstm.charlm.sample import AT_ONCE, READ, Text, chunks, ids_after, write, write_many
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.commands.sample import RULE, Sample

V, H, L = 5, 8, 2
LETTERS = Vocab("bytes", "abcde")


@pytest.fixture
def model() -> CharLM:
    made = CharLM(V, H, L).eval()
    with torch.no_grad():
        made.decoder.weight.normal_(std=2.0)  # a text that does not stand still
    return made


def independent(probabilities: list[float]) -> CharLM:
    """A model that draws every character from the same distribution."""
    made = CharLM(len(probabilities), 4, 1).eval()
    with torch.no_grad():
        made.decoder.weight.zero_()
        made.decoder.bias.copy_(torch.tensor(probabilities).log())
    return made


def loop(model: CharLM) -> sample.Model:
    """The model for the loop in Python: a native generator knows a CharLM only."""
    return lambda ids, state: model(ids, state)


# What may be drawn


def reference(
    logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """One row of `probabilities`, a character at a time."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
    ranked = ranked[:top_k] if top_k else ranked
    total, sum_so_far, kept = sum(p[i] for i in ranked), 0.0, []
    for i in ranked:
        if sum_so_far < top_p * total:
            kept.append(i)
        sum_so_far += p[i]
    kept = [i for i in kept if p[i] >= min_p * p[ranked[0]]]
    found = np.zeros_like(p)
    found[kept] = p[kept] / p[kept].sum()
    return found


FILTERS: list[dict[str, float]] = [
    {},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 40},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 4, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.2},
    {"top_k": 6, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_probabilities_are_the_references(temperature: float, filters: dict[str, float]) -> None:
    logits = torch.randn(20, 12)
    logits[5:10] = logits[5:10].round()  # ties
    found = probabilities(logits, temperature, Filters(**filters))  # type: ignore[arg-type]
    expected = np.stack([reference(row, temperature, **filters) for row in logits.numpy()])  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=0)


def test_the_filters_work_one_after_the_other() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = {
        Filters(top_k=2): [True, True, False, False],
        Filters(top_p=0.5): [True, True, False, False],
        Filters(top_k=2, top_p=0.5): [True, False, False, False],  # four of seven are enough
        Filters(min_p=0.45): [True, True, True, False],
        Filters(top_p=0.75, min_p=0.45): [True, True, True, False],
        Filters(top_p=0.65, min_p=0.8): [True, False, False, False],
    }
    for filters, expected in kept.items():
        assert (probabilities(logits, 1.0, filters) > 0)[0].tolist() == expected, filters


def test_of_equals_the_lowest_ids_stay() -> None:
    logits = torch.zeros(1, 32)  # whose sums are exact
    for filters, n in ((Filters(top_k=3), 3), (Filters(top_p=0.5), 16)):
        assert probabilities(logits, 1.0, filters)[0].nonzero().flatten().tolist() == list(range(n))
    assert probabilities(logits, 0.0)[0].argmax() == 0
    assert drawn(logits, 0.0, ALL, torch.Generator()).tolist() == [0]


@pytest.mark.parametrize("temperature", [1e-320, 1e-3, 1e6])
def test_no_temperature_is_too_extreme(temperature: float) -> None:
    p = probabilities(torch.tensor([[3.0, 80.0, -math.inf, 79.0]]), temperature, Filters(top_p=0.99))
    assert p.isfinite().all()
    assert p.sum().item() == pytest.approx(1)
    assert p[0, 2] == 0
    if temperature < 1:
        assert p[0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_what_is_drawn_has_the_references_distribution(temperature: float, filters: dict[str, float]) -> None:
    n, logits = 20_000, torch.randn(12)
    generator = torch.Generator().manual_seed(11)
    ids = drawn(logits.expand(n, -1), temperature, Filters(**filters), generator)  # type: ignore[arg-type]
    expected = reference(logits.numpy(), temperature, **filters)  # type: ignore[arg-type]
    counts = np.bincount(ids.numpy(), minlength=12)
    assert (counts[expected == 0] == 0).all()
    deviation = (counts - n * expected) / np.sqrt(n * expected * (1 - expected) + 1e-9)
    assert np.abs(deviation).max() < 4.5


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"top_k": -1}, "--top-k must be a whole number, at least 0 and below 2"),
        ({"top_k": 2**31}, "--top-k must be a whole number, at least 0 and below 2"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "--top-p must be above 0 and at most 1, got 1.1"),
        ({"top_p": math.nan}, "--top-p must be above 0 and at most 1, got nan"),
        ({"min_p": -0.1}, "--min-p must be at least 0 and at most 1, got -0.1"),
        ({"min_p": 1.1}, "--min-p must be at least 0 and at most 1, got 1.1"),
    ],
)
def test_filters_out_of_range_are_named(filters: dict[str, float], message: str) -> None:
    with pytest.raises(CharLMError, match=message):
        Filters(**filters)  # type: ignore[arg-type]


# The loop


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_sharpens_the_distribution(temperature: float) -> None:
    p, n = np.array([0.1, 0.2, 0.3, 0.4]), 2000
    text = "".join(write(independent(list(p)), Vocab("bytes", "abcd"), "", n, temperature, seed=7))
    expected = p ** (1 / temperature)
    expected /= expected.sum()
    found = np.array([text.count(c) for c in "abcd"])
    assert found.sum() == n
    assert np.abs((found - n * expected) / np.sqrt(n * expected * (1 - expected))).max() < 4


def test_filters_reach_the_text() -> None:
    model = independent([0.1, 0.2, 0.3, 0.4])
    for filters, letters in (
        (Filters(top_k=1), "d"),
        (Filters(top_p=0.6), "cd"),
        (Filters(min_p=0.4), "bcd"),
    ):
        text = "".join(write(model, Vocab("bytes", "abcd"), "", 200, 1.0, 1, filters))
        assert set(text) == set(letters)


def test_temperature_zero_needs_no_seed_and_follows_the_model(model: CharLM) -> None:
    text = "".join(write(model, LETTERS, "cab", 20, 0.0))
    assert text == "".join(write(model, LETTERS, "cab", 20, 0.0))
    assert text.startswith("cab")
    ids = torch.from_numpy(LETTERS.encode(text).astype(np.int64))[:, None]
    with torch.no_grad():
        likeliest = model(ids)[0][:, 0].argmax(1)  # one long pass: the writer's state was carried right
    assert "".join("abcde"[i] for i in likeliest[2:-1]) == text[3:]


def test_a_long_prime_is_read_in_parts_with_the_state_carried_over(model: CharLM) -> None:
    ids = torch.randint(V, (2 * READ + 3, 2))
    with torch.no_grad():
        logits, state = model(ids)
        found, found_state = sample.read(model, ids)
    torch.testing.assert_close(found, logits[-1])
    torch.testing.assert_close(found_state, state)


def test_a_seed_repeats_and_none_does_not(model: CharLM) -> None:
    def text(seed: int | None) -> str:
        return "".join(write(model, LETTERS, "", 60, 1.0, seed))

    assert text(3) == text(3) != text(4)
    assert text(None) != text(None)


def test_writing_leaves_the_random_state_alone(model: CharLM) -> None:
    before = torch.get_rng_state()
    list(write(model, LETTERS, "", 5, 1.0, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_prime_a_line_of_its_own_begins() -> None:
    model, vocab = CharLM(3, H, 1).eval(), Vocab("bytes", "\nab")
    text = "".join(write(model, vocab, "", 30, 0.0))
    assert "".join(write(model, vocab, "\n", 30, 0.0)) == "\n" + text


def test_unseen_characters_in_the_prime_are_an_error_or_not(model: CharLM) -> None:
    with pytest.raises(CharLMError, match="'z'"):
        write(model, LETTERS, "bzb", 5, 1.0)
    assert next(write(model, LETTERS, "bzb", 5, 1.0, unknown="skip")) == "bb"
    with pytest.raises(CharLMError, match="'z'"):
        write_many(model, LETTERS, "bzb", 5, 1.0)
    assert write_many(model, LETTERS, "bzb", 5, 1.0, unknown="skip")[0].prime == "bb"


class NothingLooks(TorchDispatchMode):
    """Fails when the host asks for the value of a tensor, which on a GPU waits for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func not in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_loop_never_waits_for_the_device(temperature: float) -> None:
    def bigrams(ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        return table[ids], ()

    table = torch.randn(V, V)
    with NothingLooks():
        rows = list(
            islice(ids_after(bigrams, torch.zeros(1, 3).long(), temperature, 1, Filters(3, 0.9, 0.01)), 9)
        )
        with pytest.raises(AssertionError):
            table[0, 0].item()
    assert torch.cat(rows).shape == (9, 3)


@pytest.mark.parametrize(
    ("length", "sizes"), [(0, []), (1, [1]), (9, [1, 2, 4, 2]), (130, [1, 2, 4, 8, 16, 32, 64, 3])]
)
def test_chunks_grow_and_end_where_they_should(model: CharLM, length: int, sizes: list[int]) -> None:
    start = torch.zeros(1, 3).long()
    for writer, row_by_row in (
        (model, chunks(model, start, 1.0, 5)),
        (loop(model), ids_after(model, start, 1.0, 5)),
    ):
        parts = list(chunks(writer, start, 1.0, 5, length=length))
        assert [len(part) for part in parts] == sizes
        rows = (row for part in row_by_row for row in part.tolist())
        assert [row for part in parts for row in part.tolist()] == list(islice(rows, length))


def test_without_a_length_there_is_no_end(model: CharLM) -> None:
    parts = list(islice(chunks(model, torch.zeros(1, 1).long(), 1.0, 5), 10))
    assert [len(part) for part in parts] == [1, 2, 4, 8, 16, 32, AT_ONCE, AT_ONCE, AT_ONCE, AT_ONCE]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_writing_without_end_takes_no_more_and_more_memory() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def bigrams(ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        return table[ids], ()

    table = torch.randn(V, V)
    rows = chunks(bigrams, torch.zeros(1, 1).long(), 1.0, 5)
    text = Text(LETTERS, np.array([0]), ["abcdeabcdeabcdeabcde"])

    def pages_after(pieces: int) -> int:
        for part in islice(rows, pieces):
            text.take(part[:, 0].tolist())
        return resident_pages()

    before = pages_after(30)
    assert pages_after(100) - before < 256  # 1 MiB, much less than 6,400 characters kept as tensors


class FakeWriter:
    """A generator that counts up, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.next = 0

    def read(self, ids: Tensor) -> None:
        self.asked.append(("read", ids.tolist()))

    def generate(self, count: int, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
        self.asked.append((count, temperature, top_k, top_p, min_p))
        self.next += count
        return (torch.arange(self.next - count, self.next) % V)[:, None].repeat(1, 2)


def test_the_native_generator_writes_where_it_serves(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = FakeWriter()

    def generator_of(*args: object) -> FakeWriter:
        assert args == (model, 2, 9, "int8")
        return writer

    monkeypatch.setattr(sample, "generator_of", generator_of)
    texts = write_many(model, LETTERS, "ba", 9, 0.5, 9, Filters(2, 0.75, 0.25), precision="int8", samples=2)
    assert [text.text for text in texts] == ["abcdeabcd"] * 2
    how = 0.5, 2, 0.75, 0.25
    assert writer.asked == [("read", [[1, 1], [0, 0]]), *((n, *how) for n in (1, 2, 4, 2))]


@pytest.mark.parametrize("options", [{}, {"embedding": 3}, {"embedding": H, "tied": True}])
def test_the_native_generator_and_the_loop_agree(options: dict[str, Any]) -> None:
    model = CharLM(V, H, L, **options).eval()
    with torch.no_grad():
        model.decoder.weight.normal_(std=2.0)
        model.decoder.bias.zero_()
        for w_ih, *_ in model.lstm.all_weights:
            w_ih.mul_(3)
    start = torch.randint(V, (7, 100))
    assert sample.generator_of(model, 3, 1, "float32")
    assert sample.generator_of(loop(model), 3, 1, "float32") is None
    native, looped = (torch.cat(list(chunks(m, start, 0.0, length=9))) for m in (model, loop(model)))
    assert native.tolist() == looped.tolist()
    assert len(native.unique()) > 1


@pytest.mark.parametrize("options", [{"model": "gru"}, {"model": "rnn"}, {"zoneout": 0.2}])
def test_layers_that_the_native_generator_does_not_know_are_written_by_the_loop(
    options: dict[str, Any],
) -> None:
    model = CharLM(V, H, L, **options).eval()
    assert sample.generator_of(model, 1, 1, "float32") is None
    text = "".join(write(model, LETTERS, "ab", 30, 0.0))
    ids = torch.from_numpy(LETTERS.encode(text).astype(np.int64))[:, None]
    with torch.no_grad():
        likeliest = model(ids)[0][:, 0].argmax(1)
    assert "".join("abcde"[i] for i in likeliest[1:-1]) == text[2:]
    with pytest.raises(
        CharLMError, match="--precision must be float32 but for LSTM layers on a CPU, got bfloat16"
    ):
        write(model, LETTERS, "ab", 30, 0.0, precision="bfloat16")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_fewer_bits_write_nearly_as_well(precision: sample.Precision) -> None:
    p, n = np.array([0.1, 0.2, 0.3, 0.4]), 2000
    text = "".join(write(independent(list(p)), Vocab("bytes", "abcd"), "", n, 1.0, 7, precision=precision))
    found = np.array([text.count(c) for c in "abcd"])
    assert np.abs((found - n * p) / np.sqrt(n * p * (1 - p))).max() < 4


def test_a_precision_that_nothing_has_is_an_error() -> None:
    def bigrams(ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        return torch.zeros(*ids.shape, V), ()

    with pytest.raises(CharLMError, match=r"--precision must be float32 .*got int8"):
        chunks(bigrams, torch.zeros(1, 1).long(), 1.0, precision="int8")


# Ids to text


def cut(text: str, stops: list[str]) -> str:
    """What is left of a text, reading it a character at a time."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


def test_a_stop_string_is_found_however_the_pieces_fall() -> None:
    random = np.random.default_rng(5)
    stopped = 0
    for _ in range(2000):
        text = "".join(random.choice(list("abc"), 20))
        stops = [
            "".join(random.choice(list("abc"), random.integers(1, 6))) for _ in range(random.integers(0, 4))
        ]
        ids, cuts = LETTERS.encode(text), sorted(random.integers(0, 21, random.integers(0, 6)))
        made = Text(LETTERS, np.array([], np.uint8), stops)
        pieces = [made.take(part.tolist()) for part in np.split(ids, cuts)]
        sure = "".join(pieces)
        assert sure + made.end() == cut(text, stops), (text, stops, cuts)
        assert made.stopped == (cut(text, stops) != text or any(stop in text for stop in stops))
        if not made.stopped:  # nothing is held back for longer than it must
            assert len(sure) > 20 - max(map(len, stops), default=1)
        stopped += made.stopped
    assert 500 < stopped < 1900


def test_what_cannot_begin_a_stop_string_shows_at_once() -> None:
    text = Text(LETTERS, np.array([], np.uint8), ["abd"])
    assert [text.take([i]) for i in (0, 1, 0, 1, 2, 0, 1, 3, 4)] == ["", "", "ab", "", "abc", "", "", "", ""]
    assert text.stopped
    assert text.end() == ""


def test_stop_strings_end_each_text_where_it_meets_them(model: CharLM) -> None:
    texts = write_many(model, LETTERS, "a", 300, 1.0, 3, samples=4)
    for stops in (["c"], ["ab", "dd"], ["eabcdeabcd"]):
        found = write_many(model, LETTERS, "a", 300, 1.0, 3, stops=stops, samples=4)
        assert [text.text for text in found] == [cut(text.text, stops) for text in texts]
        assert [text.stopped for text in found] == [any(s in text.text for s in stops) for text in texts]
    one = "".join(write(model, LETTERS, "a", 300, 1.0, 3))
    assert "".join(write(model, LETTERS, "a", 300, 1.0, 3, stops=["cb", "bc"])) == "a" + cut(
        one[1:], ["cb", "bc"]
    )


def test_a_stop_string_in_the_prime_ends_nothing(model: CharLM) -> None:
    assert len("".join(write(model, LETTERS, "abc", 9, 1.0, 1, stops=["abc", "caaaaaaaaaaaaa"]))) == 12


def test_nothing_is_written_after_the_last_text_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = FakeWriter()
    monkeypatch.setattr(sample, "generator_of", lambda *args: writer)
    write_many(independent([0.2] * 5), LETTERS, "a", 10_000, 1.0, stops=["e"], samples=2)
    assert sum(call[0] for call in writer.asked[1:]) == 7  # type: ignore[misc]
    writer.next, writer.asked = 0, []
    "".join(write(independent([0.2] * 5), LETTERS, "a", 10_000, 1.0, stops=["e"]))
    assert sum(call[0] for call in writer.asked[1:]) == 7  # type: ignore[misc]


def test_utf8_arrives_whole_also_after_half_a_prime(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = "éaé€😀z"
    vocab = Vocab("bytes", "".join(sorted(set(letters.encode().decode("latin-1")))))
    ids = torch.from_numpy(vocab.encode(letters).astype(np.int64))

    def parts(*args: object) -> Iterator[Tensor]:
        return iter(ids[1:, None].split(1))

    monkeypatch.setattr(sample, "chunks", parts)
    model = independent([1 / len(vocab)] * len(vocab))
    pieces = list(write(model, vocab, letters.encode()[:1], 99, 1.0))
    assert "".join(pieces) == letters
    assert "😀" in pieces
    monkeypatch.setattr(sample, "chunks", lambda *args: iter(ids[1:-2, None].split(2)))  # cut in a character
    assert "".join(write(model, vocab, letters.encode()[:1], 99, 1.0)) == "éaé€\ufffd"


def test_characters_are_written_as_characters() -> None:
    vocab = Vocab("chars", "ab€😀")
    text = "".join(write(independent([0.25] * 4), vocab, "€", 40, 1.0, 2))
    assert text[0] == "€"
    assert set(text) == set("ab€😀")
    assert len(text) == 41


def test_length_counts_characters_of_the_vocabulary() -> None:
    vocab = Vocab("bytes", "x")
    assert "".join(write(independent([1.0]), vocab, "", 9, 1.0)) == "x" * 9
    assert "".join(write(independent([1.0]), vocab, "xx", 0, 1.0)) == "xx"


def test_texts_side_by_side_are_their_own(model: CharLM) -> None:
    texts = [text.text for text in write_many(model, LETTERS, "a", 50, 1.0, 3, samples=3)]
    assert len(set(texts)) == 3
    assert texts == [text.text for text in write_many(model, LETTERS, "a", 50, 1.0, 3, samples=3)]
    alone = "".join(write(model, LETTERS, "a", 50, 1.0, 3))
    assert [t.prime + t.text for t in write_many(model, LETTERS, "a", 50, 1.0, 3)] == [alone]


# Beams


def log_probability(model: CharLM, prime: list[int], text: tuple[int, ...]) -> float:
    """Of a text after a prime, in one pass."""
    ids = torch.tensor([*prime, *text])[:, None]
    with torch.no_grad():
        sure = model(ids)[0][:, 0].double().log_softmax(1)
    return sum(sure[len(prime) - 1 + i, letter].item() for i, letter in enumerate(text))


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_all_texts_finds_the_likeliest(seed: int) -> None:
    torch.manual_seed(seed)
    model, prime, length = CharLM(3, H, L).eval(), [2, 0, 1], 5
    with torch.no_grad():
        model.decoder.weight.normal_(std=3.0)
    likelihoods = {text: log_probability(model, prime, text) for text in product(range(3), repeat=length)}
    found, score = beam(model, torch.tensor(prime)[:, None], length, width=3**length)
    assert tuple(found.tolist()) == max(likelihoods, key=lambda text: likelihoods[text])
    assert score == pytest.approx(max(likelihoods.values()), abs=1e-5)


@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_beam_knows_how_likely_its_text_is_and_repeats_it(model: CharLM, width: int) -> None:
    prime = [3, 1]
    found, score = beam(model, torch.tensor(prime)[:, None], 30, width)
    assert score == pytest.approx(log_probability(model, prime, tuple(found.tolist())), abs=1e-4)
    again, same = beam(model, torch.tensor(prime)[:, None], 30, width)
    assert (again.tolist(), same) == (found.tolist(), score)


def test_a_beam_of_one_takes_the_likeliest_character(model: CharLM) -> None:
    greedy = "".join(write(model, LETTERS, "ab", 25, 0.0))
    text, _ = write_likeliest(model, LETTERS, "ab", 25, 1)
    assert (text.prime + text.text, text.stopped) == (greedy, False)


def test_a_beam_sees_further_than_the_next_character() -> None:
    # The likelier first letter b is followed by anything, c by itself alone.
    table = torch.tensor([[1e-9, 0.6, 0.4], [1 / 3, 1 / 3, 1 / 3], [1e-9, 1e-9, 1.0]]).log()

    def bigrams(ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        return table[ids], ()

    start = torch.zeros(1, 1).long()
    assert beam(bigrams, start, 3, 1)[0].tolist() == [1, 0, 1]
    text, score = beam(bigrams, start, 3, 2)
    assert text.tolist() == [2, 2, 2]
    assert score == pytest.approx(math.log(0.4))


def test_of_equal_beams_the_lowest_ids_win() -> None:
    def even(ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        return torch.zeros(*ids.shape, 3), ()

    assert beam(even, torch.zeros(1, 1).long(), 4, 5)[0].tolist() == [0, 0, 0, 0]


# New lines


@pytest.mark.parametrize(
    ("before", "text", "whole", "lines"),
    [
        ("", "Ann\n\n  Bob \nCe", False, ["Ann", "Bob"]),
        ("", "Ann\n\n  Bob \nCe", True, ["Ann", "Bob", "Ce"]),
        ("", "Ann\r\nBob\r\n", False, ["Ann", "Bob"]),
        ("Zoe\nAn", "n\nBo", False, ["Ann"]),
        ("Zoe\n", "Ann\n", False, ["Ann"]),
        ("", "", True, []),
        ("", "A\u2028nn\x0cie\n", False, ["A\u2028nn\x0cie"]),
    ],
)
def test_lines_are_whole_and_the_models_own(before: str, text: str, whole: bool, lines: list[str]) -> None:
    assert lines_of(before, text, whole) == lines


def test_new_lines_are_counted_against_all_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"Ann\r\n Bob\nbad \xff byte\n")
    (tmp_path / "b.txt").write_text("Cleo")
    lines = ["Ann", "Bob", "Cleo", "Dora", "Dora", "bad \ufffd byte", "Annie"]
    assert novelty(lines, [tmp_path / "a.txt"]) == Novelty(4, 7)
    found = novelty(lines, [tmp_path / "a.txt", tmp_path / "b.txt"])
    assert found == Novelty(3, 7)
    assert str(found) == "novel lines: 3 of 7 (42.9 %)"
    assert str(Novelty(812, 900)) == "novel lines: 812 of 900 (90.2 %)"
    assert str(novelty([], [])) == "novel lines: 0 of 0"
    with pytest.raises(CharLMError, match=r"--novel-against: cannot read .*: Is a directory"):
        novelty(lines, [tmp_path])


# The command


@pytest.fixture
def command(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `fusedlstm sample RUN` with more words, on a model in place of a run."""

    def load_model(run: str, which: str) -> tuple[CharLM, Vocab]:
        assert (run, which) == ("RUN", "last")
        return model, LETTERS

    def call(*words: str | Path) -> None:
        tyro.cli(Sample, args=["RUN", *map(str, words)], prog="fusedlstm sample")()

    monkeypatch.setattr("fusedlstm.commands.sample.load_model", load_model)
    return call


def test_the_command_shows_what_write_makes(
    command: Callable[..., None], model: CharLM, capsys: pytest.CaptureFixture[str]
) -> None:
    command("--prime", "bad", "--length", "70", "--seed", "4", "--temperature", "1.5", "--top-k", "3")
    shown = capsys.readouterr()
    assert shown.out == "".join(write(model, LETTERS, "bad", 70, 1.5, 4, Filters(top_k=3))) + "\n"
    assert shown.err == ""
    command(
        "--prime", "bzad", "--unknown", "skip", "--length", "70", "--seed", "4", "--stop", "x", "--stop", "cc"
    )
    whole = "".join(write(model, LETTERS, "bad", 70, 0.8, 4))
    assert capsys.readouterr().out == "bad" + cut(whole[3:], ["cc"]) + "\n"


def test_the_command_shows_or_keeps_several_texts(
    command: Callable[..., None], model: CharLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["c" + text.text for text in write_many(model, LETTERS, "c", 30, 0.8, 4, samples=3)]
    (tmp_path / "prime.txt").write_text("c")
    words = "--samples", "3", "--length", "30", "--seed", "4", "--prime-file", tmp_path / "prime.txt"
    command(*words)
    assert capsys.readouterr().out == f"\n{RULE}\n".join(texts) + "\n"
    command(*words, "--json")
    assert json.loads(capsys.readouterr().out) == {"texts": texts}
    command(*words, "--out", tmp_path / "a" / "b")
    assert capsys.readouterr().out == ""
    kept = sorted((tmp_path / "a" / "b").iterdir())
    assert [file.name for file in kept] == ["sample-001.txt", "sample-002.txt", "sample-003.txt"]
    assert [file.read_text() for file in kept] == texts
    with pytest.raises(CharLMError, match=r"--out: cannot write to .*prime.txt"):
        command(*words, "--out", tmp_path / "prime.txt")


def test_the_command_counts_new_lines(
    command: Callable[..., None], model: CharLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--stop", "e", "--samples", "40", "--length", "200", "--seed", "4", "--prime", "a"
    command(*words, "--json")
    texts = json.loads(capsys.readouterr().out)["texts"]
    (tmp_path / "one.txt").write_text(f"{texts[0]}\n")
    (tmp_path / "two.txt").write_text(f"\n{texts[1]}\nnever written\n")
    new = sum(text not in texts[:2] for text in texts)
    assert 0 < new < 39
    files = "--novel-against", tmp_path / "one.txt", "--novel-against", tmp_path / "two.txt"
    command(*words, *files, "--json")
    shown = capsys.readouterr()
    assert shown.err == f"novel lines: {new} of 40 ({new / 40:.1%})\n".replace("%", " %")
    assert json.loads(shown.out) == {"texts": texts, "novel": new, "lines": 40}
    command(*words, *files)
    assert capsys.readouterr().out == f"\n{RULE}\n".join(texts) + "\n"


def test_the_command_searches_with_a_beam(
    command: Callable[..., None], model: CharLM, capsys: pytest.CaptureFixture[str]
) -> None:
    text, nats = write_likeliest(model, LETTERS, "ab", 12, 4)
    command("--beam", "4", "--length", "12", "--prime", "ab")
    shown = capsys.readouterr()
    assert shown.out == f"ab{text.text}\n"
    assert shown.err == f"log-probability: {nats:.4f} nats, {-nats / 12 / math.log(2):.4f} bits/char\n"
    command("--beam", "4", "--length", "12", "--prime", "ab", "--json")
    assert json.loads(capsys.readouterr().out) == {"texts": [f"ab{text.text}"], "log_probability": nats}


def test_the_command_writes_without_end(
    command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Enough(Exception):
        pass

    class Reader:
        def write(self, piece: str) -> None:
            shown.append(piece)
            if len("".join(shown)) > 3000:
                raise Enough

        def flush(self) -> None:
            pass

    monkeypatch.setattr("sys.stdout", Reader())
    with pytest.raises(Enough):
        command("--length", "0", "--seed", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "--temperature must be a finite number, at least 0, got -1.0"),
        (["--length", "-1"], "--length must be a whole number, at least 0, got -1"),
        (["--samples", "0"], "--samples must be a whole number, at least 1, got 0"),
        (["--beam", "-2"], "--beam must be a whole number, at least 0, got -2"),
        (["--top-k", "-2"], "--top-k must be a whole number, at least 0 and below 2"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1, got 0.0"),
        (["--min-p", "2"], "--min-p must be at least 0 and at most 1, got 2.0"),
        (["--seed", str(2**63)], "--seed must be a whole number of 64 bits"),
        (["--stop", ""], "--stop must be a text of at least one character"),
        (["--novel-against", "nowhere"], "--novel-against must be files that are there, got ('nowhere',)"),
        (["--prime", "a", "--prime-file", "b"], "give --prime or --prime-file, not both"),
        (["--prime-file", "nowhere"], "--prime-file: cannot read nowhere: No such file or directory"),
        (["--length", "0", "--samples", "2", "--json"], "--length 0 goes without --samples, --json"),
        (["--beam", "2", "--seed", "0", "--top-p", "0.5"], "--beam goes without --top-p, --seed"),
        (["--length", "0", "--beam", "2"], "--length 0 goes without --beam"),
        (["--prime", "zebra"], "'z'"),
    ],
)
def test_the_command_names_what_does_not_serve(
    command: Callable[..., None], words: list[str], message: str
) -> None:
    with pytest.raises(CharLMError) as caught:
        command(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
