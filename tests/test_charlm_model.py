"""The network's loss, the carried state, and the writer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fusedlstm.charlm.corpus import Corpus, Streams
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.sample import _decode, write
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.train import evaluate, train_step

V, H, L = 5, 8, 2


@pytest.fixture
def model() -> CharLM:
    return CharLM(V, H, L).eval()


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over all characters of log sum exp(logits) - logits[target], in float64."""
    logits = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    picked = logits[np.arange(len(logits)), targets.reshape(-1)]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - picked))


def test_the_model_is_torch_lstm_on_one_hot_and_a_linear_map(model: CharLM) -> None:
    lstm = torch.nn.LSTM(V, H, L)
    lstm.load_state_dict(model.lstm.state_dict())
    ids = torch.randint(V, (7, 3))
    y, (h, c) = lstm(torch.nn.functional.one_hot(ids, V).float())
    logits, (model_h, model_c) = model(ids)
    expected = y @ model.decoder.weight.T + model.decoder.bias
    for ours, theirs in [(logits, expected), (model_h, h), (model_c, c)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_untrained_model_predicts_what_is_frequent(model: CharLM) -> None:
    counts = torch.tensor([0, 10, 1000, 50, 1])
    model.start_from(counts)
    logits = model.decoder(torch.zeros(1, H))
    torch.testing.assert_close(logits.softmax(1)[0], (counts + 1) / (counts.sum() + V))


def test_forget_gates_start_open_and_one_hot_input_is_heard(model: CharLM) -> None:
    for w_ih, _, b_ih, _ in model.lstm.all_weights:
        assert (b_ih[H : 2 * H] == 1).all()
        assert (b_ih[:H] != 1).all()
        assert w_ih.isfinite().all()
    assert model.lstm.all_weights[0][0].std().item() == pytest.approx(1 / math.sqrt(3), rel=0.2)


def test_the_loss_is_the_cross_entropy(model: CharLM) -> None:
    x, y = torch.randint(V, (9, 4)), torch.randint(V, (9, 4))
    logits, _ = model(x)
    expected = cross_entropy(logits.detach().numpy(), y.numpy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss, (h, c) = train_step(model, optimizer, x, y, None, 1.0, torch.float32)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert not h.requires_grad
    assert not c.requires_grad
    again, _ = train_step(model, optimizer, x, y, None, 1.0, torch.float32)
    assert again < loss


def test_gradients_are_clipped_by_their_norm(model: CharLM) -> None:
    x, y = torch.randint(V, (9, 4)), torch.randint(V, (9, 4))
    before = [p.detach().clone() for p in model.parameters()]
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), x, y, None, 1e-3, torch.float32)
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    assert moved.detach().norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(model: CharLM) -> None:
    with torch.no_grad():
        model.decoder.bias[0] = math.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(CharLMError, match=r"loss is nan.*--learning-rate"):
        train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), x, x, None, 1.0, torch.float32)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("T", [1, 4, 1000])
def test_carried_state_makes_chunks_one_long_pass(model: CharLM, T: int) -> None:
    ids = np.random.default_rng(0).integers(0, V, 62).astype(np.uint8)
    streams = Streams(ids, 3)
    x, y = streams.chunk(0, streams.n)
    with torch.no_grad():
        expected = cross_entropy(model(x)[0].numpy(), y.numpy())
    assert evaluate(model, streams, T, torch.float32) == pytest.approx(expected, rel=1e-6)


def test_bfloat16_agrees_roughly(model: CharLM) -> None:
    streams = Streams(np.random.default_rng(0).integers(0, V, 401).astype(np.uint8), 4)
    exact, rough = (evaluate(model, streams, 20, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact


def independent(probabilities: list[float]) -> CharLM:
    """A model that draws every character from the same distribution."""
    made = CharLM(len(probabilities), 4, 1).eval()
    with torch.no_grad():
        made.decoder.weight.zero_()
        made.decoder.bias.copy_(torch.tensor(probabilities).log())
    return made


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_sharpens_the_distribution(temperature: float) -> None:
    probabilities, n = np.array([0.1, 0.2, 0.3, 0.4]), 2000
    text = "".join(write(independent(list(probabilities)), b"abcd", b"", n, temperature, seed=7))
    expected = probabilities ** (1 / temperature)
    expected /= expected.sum()
    found = np.array([text.count(c) for c in "abcd"])
    assert found.sum() == n
    deviation = (found - n * expected) / np.sqrt(n * expected * (1 - expected))
    assert np.abs(deviation).max() < 4


def test_a_tiny_temperature_is_the_likeliest_character(model: CharLM) -> None:
    coldest, cold = ("".join(write(model, b"abcde", b"c", 50, t, seed=1)) for t in (0.0, 1e-320))
    assert coldest == cold


def test_temperature_zero_needs_no_seed_and_follows_the_model(model: CharLM) -> None:
    text = "".join(write(model, b"abcde", b"cab", 20, 0.0))
    assert text == "".join(write(model, b"abcde", b"cab", 20, 0.0))
    assert text.startswith("cab")
    ids = torch.tensor(["abcde".index(c) for c in text])[:, None]
    with torch.no_grad():
        likeliest = model(ids)[0][:, 0].argmax(1)  # one long pass: the writer's state was carried right
    assert "".join("abcde"[i] for i in likeliest[2:-1]) == text[3:]


def test_a_seed_repeats_and_none_does_not(model: CharLM) -> None:
    def text(seed: int | None) -> str:
        return "".join(write(model, b"abcde", b"", 60, 1.0, seed))

    assert text(3) == text(3) != text(4)
    assert text(None) != text(None)


def test_writing_leaves_the_random_state_alone(model: CharLM) -> None:
    before = torch.get_rng_state()
    list(write(model, b"abcde", b"", 5, 1.0, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_prime_a_line_of_its_own_begins() -> None:
    model = CharLM(3, H, 1).eval()
    text = "".join(write(model, b"\nab", b"", 30, 0.0))
    assert "".join(write(model, b"\nab", b"\n", 30, 0.0)) == "\n" + text


def test_unseen_characters_in_the_prime_are_named(model: CharLM) -> None:
    with pytest.raises(CharLMError, match=r"'z', byte 0xa9, byte 0xc3$"):
        write(model, b"abcde", "bézb".encode(), 5, 1.0)


def test_utf8_arrives_whole_whatever_its_length() -> None:
    text = "aé€😀z"
    pieces = list(_decode(b"", text.encode()))
    assert "".join(pieces) == text
    assert "😀" in pieces
    assert "".join(_decode("é".encode()[:1], "é".encode()[1:] + b"!")) == "é!"


def test_what_is_not_utf8_is_replaced() -> None:
    assert "".join(_decode(b"a", b"\xff\xc3b\xe2\x82")) == "a\ufffd\ufffdb\ufffd"


def test_length_counts_characters_of_the_vocabulary() -> None:
    assert "".join(write(independent([1.0]), b"x", b"", 9, 1.0)) == "x" * 9
    assert "".join(write(independent([1.0]), b"x", b"xx", 0, 1.0)) == "xx"


def test_a_corpus_makes_the_round_trip_through_the_writer() -> None:
    text = Corpus.from_bytes("x", b"hello")
    assert "".join(write(independent([0.25] * 4), text.vocab, b"hello", 0, 1.0)) == "hello"
