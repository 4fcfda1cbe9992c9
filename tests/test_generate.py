"""The generator against NumPy: the same draws from the same chances, on any engine, in any pieces."""

from __future__ import annotations

import itertools
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusedlstm import _C, reference
from fusedlstm.backends import cpu
from fusedlstm.functional import lstm
from fusedlstm.generate import Generator

pytestmark = pytest.mark.usefixtures("as_found")

ENGINES = _C.available_engines()
# How far logits may be off, as a share of the softmax by which a chance may then lie beyond a border. With
# int8, h is rounded to 15 bits.
NEAR = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 1e-3}


@dataclass
class Net:
    """Random weights of L layers of width H over V characters, with an embedding of width E unless 0."""

    L: int
    H: int
    V: int
    B: int = 1
    E: int = 0
    bias: bool = True
    seed: int = 0
    weights: list[list[Tensor]] = field(init=False)
    embedding: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=random) * scale

        H, V, inputs = self.H, self.V, self.E or self.V
        self.embedding = normal(V, self.E) if self.E else None
        self.weights = []
        for layer in range(self.L):
            w_ih = normal(4 * H, H, scale=1.5 * H**-0.5) if layer else normal(4 * H, inputs, scale=0.7)
            biases = [normal(4 * H, scale=0.3), normal(4 * H, scale=0.3)] if self.bias else []
            self.weights.append([w_ih, normal(4 * H, H, scale=1.5 * H**-0.5), *biases])
        self.decoder, self.decoder_bias = normal(V, H, scale=2.0), normal(V)

    def generator(self, **options: Any) -> Generator:
        given = {"B": self.B, "seed": 5, "embedding": self.embedding} | options
        return Generator(self.weights, self.decoder, self.decoder_bias, **given)

    def start(self) -> Tensor:
        """First characters [4, B]."""
        return torch.arange(4 * self.B).view(4, self.B) * 3 % self.V

    def logits(self, ids: Tensor, precision: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every next character [T, B, V], and h and c after the last: float64, the matrices rounded."""
        flat = []
        for layer, (w_ih, w_hh, *biases) in enumerate(self.weights):
            first = w_ih.double().numpy() if layer == 0 else rounded(w_ih, precision)
            flat += [first, rounded(w_hh, precision), *(b.double().numpy() for b in biases)]
        x = ids.numpy() if self.embedding is None else self.embedding.double().numpy()[ids.numpy()]
        y, h, c, *_ = reference.forward(x, flat, num_layers=self.L, bias=self.bias)
        return y @ rounded(self.decoder, precision).T + self.decoder_bias.double().numpy(), h, c


NETS = [
    Net(1, 5, 7),
    Net(2, 33, 11, B=3),
    Net(1, 40, 300, B=2, bias=False),
    Net(3, 64, 65, B=9, E=6),
    Net(2, 17, 130, B=14, E=20, bias=False),
]
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_precision = pytest.mark.parametrize("precision", NEAR)


def rounded(w: Tensor, precision: str) -> np.ndarray:
    """A matrix as it is kept in a precision, in float64."""
    if precision == "bfloat16":
        return w.bfloat16().double().numpy()
    if precision == "int8":
        values = w.numpy()
        scales = np.abs(values).max(1, keepdims=True) / np.float32(127)
        return np.rint(values / scales).astype(np.float64) * scales
    return w.double().numpy()


def philox(key: int, counter: int) -> int:
    """The first word of Philox4x32-10, after Salmon et al., Parallel random numbers: as easy as 1, 2, 3."""
    word = 2**32 - 1
    k = [key & word, key >> 32]
    c = [counter >> shift & word for shift in (0, 32, 64, 96)]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & word, a >> 32 ^ c[3] ^ k[1], a & word]
        k = [(k[0] + 0x9E3779B9) & word, (k[1] + 0xBB67AE85) & word]
    return c[0]


def chance(seed: int, stream: int, position: int) -> float:
    return philox(seed % 2**64, stream | position << 64) / 2**32


def drawn(
    logits: np.ndarray, u: float, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[int, float]:
    """The id that a chance falls on, and how far it is from the nearest border between two."""
    p = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        order = order[:top_k]
    before = np.concatenate(([0], np.cumsum(p[order])[:-1]))
    order = order[before < top_p * p[order].sum()]
    order = order[p[order] >= min_p * p.max()]
    kept = np.zeros_like(p)
    kept[order] = p[order] / p[order].sum()
    borders = np.cumsum(kept)
    return int(np.searchsorted(borders, u, side="right")), float(np.abs(borders[:-1] - u).min(initial=1))


@pytest.mark.parametrize(
    ("key", "counter", "word"),
    [  # published with the algorithm
        (0, 0, 0x6627E8D5),
        (2**64 - 1, 2**128 - 1, 0x408F276D),
        (0x299F31D0A4093822, 0x0370734413198A2E85A308D3243F6A88, 0xD16CFE09),
    ],
)
def test_the_philox_of_these_tests_is_philox(key: int, counter: int, word: int) -> None:
    assert philox(key, counter) == word


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 + 12345])
@pytest.mark.parametrize("position", [0, 2**32 - 2])
def test_a_chance_is_of_seed_stream_and_position(seed: int, position: int) -> None:
    V, B = 4096, 3
    net = Net(1, 2, V, B)
    net.decoder.zero_()
    net.decoder_bias.zero_()  # all are as likely: the id is the chance's first 12 bits
    generator = net.generator(seed=seed)
    generator.position = position
    generator.read(net.start())
    expected = [[int(chance(seed, b, position + t) * V) for b in range(B)] for t in range(5)]
    assert generator.generate(5).tolist() == expected
    assert generator.position == position + 5


@every_engine
@every_precision
@pytest.mark.parametrize("net", NETS, ids=str)
def test_the_draws_are_those_of_numpy(net: Net, precision: str, engine: str) -> None:
    _C.select_engine(engine)
    generator = net.generator(precision=precision)
    generator.read(net.start())
    ids = generator.generate(20, temperature=0.7, top_k=9, top_p=0.95, min_p=0.01)
    text = torch.cat((net.start(), ids))
    logits, h, c = net.logits(text[:-1], precision)
    compared = 0
    for t, b in itertools.product(range(20), range(net.B)):
        expected, apart = drawn(logits[3 + t, b], chance(5, b, t), 0.7, 9, 0.95, 0.01)
        if apart > NEAR[precision]:
            compared += 1
            assert ids[t, b] == expected, f"character {t} of stream {b}"
    assert compared > 18 * net.B
    for found, truth in zip(generator.state, (h, c), strict=True):
        np.testing.assert_allclose(found, truth, rtol=0, atol=NEAR[precision])
    assert torch.equal(generator.last, text[-1])


@every_engine
@every_precision
def test_the_likeliest_without_chance(precision: str, engine: str) -> None:
    _C.select_engine(engine)
    net = Net(2, 33, 40, B=2)
    generator = net.generator(precision=precision)
    generator.read(net.start())
    ids = generator.generate(20, temperature=0)
    logits, _, _ = net.logits(torch.cat((net.start(), ids[:-1])), precision)
    best = np.sort(logits[3:], axis=-1)
    clear = best[..., -1] - best[..., -2] > 10 * NEAR[precision]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ids.numpy()[clear], logits[3:].argmax(-1)[clear])


def test_of_equals_the_lowest_id_is_the_likeliest() -> None:
    net = Net(1, 3, 50)
    net.decoder.zero_()
    net.decoder_bias.zero_()
    net.decoder_bias[[17, 30, 41]] = 2.0
    generator = net.generator()
    generator.read(net.start())
    assert set(generator.generate(10, temperature=0).flatten().tolist()) == {17}
    assert set(generator.generate(60, top_k=2).flatten().tolist()) == {17, 30}
    assert set(generator.generate(60, top_p=0.001).flatten().tolist()) == {17}


LOGITS = {
    "normal": torch.randn(60, generator=torch.Generator().manual_seed(3)),
    "ties": torch.arange(60.0) % 7,
    "wide": torch.linspace(-300, 300, 60).roll(7),
    "equal": torch.zeros(60),
    "one": torch.zeros(1),
}
FILTERS: list[dict[str, Any]] = [
    {},
    *({"top_k": k} for k in (1, 5, 60, 1000)),
    *({"top_p": p} for p in (1e-9, 0.5, 0.9)),
    *({"min_p": p} for p in (0.05, 0.5, 1.0)),
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "min_p": 0.3},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.2},
]


@pytest.mark.parametrize("temperature", [1e-300, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_every_filter(logits: Tensor, temperature: float) -> None:
    V, count = len(logits), 100
    net = Net(1, 2, V)
    net.decoder.zero_()
    net.decoder_bias = logits
    generator = net.generator()
    generator.read(torch.zeros(1, 1, dtype=torch.int64))
    for filters in FILTERS:
        generator.position = 0
        expected = [
            drawn(logits.double().numpy(), chance(5, 0, t), temperature, **filters) for t in range(count)
        ]
        found = generator.generate(count, temperature, **filters).flatten().tolist()
        wrong = [t for t, (id, apart) in enumerate(expected) if apart > 1e-12 and found[t] != id]
        assert not wrong, f"{filters}: draws {wrong}"


@every_precision
@pytest.mark.parametrize("net", NETS[1:4], ids=str)
def test_pieces_and_threads_change_no_bit(net: Net, precision: str) -> None:
    def written(pieces: tuple[int, ...], threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        generator = net.generator(precision=precision)
        generator.read(net.start())
        ids = [generator.generate(n, 0.9, top_p=0.9) for n in pieces]
        return [torch.cat(ids), *generator.state]

    whole = written((20,), 1)
    for pieces, threads in (((10, 10), 1), ((1, 2, 4, 13), 2), ((20,), 3), ((7, 0, 13), 7)):
        for found, expected in zip(written(pieces, threads), whole, strict=True):
            assert torch.equal(found, expected), f"in {pieces} on {threads} threads"


@every_precision
def test_what_was_written_reads_the_same(precision: str) -> None:
    net = Net(2, 33, 11, B=3)
    writer, reader = net.generator(precision=precision), net.generator(precision=precision)
    writer.read(net.start())
    ids = writer.generate(12)
    reader.read(net.start()[:1])
    reader.read(torch.cat((net.start()[1:], ids[:5])))
    reader.read(ids[5:])
    assert all(torch.equal(a, b) for a, b in zip(writer.state, reader.state, strict=True))
    reader.position = writer.position
    assert torch.equal(writer.generate(5), reader.generate(5))


@every_engine
@every_precision
def test_the_score_is_minus_log_of_the_probability(precision: str, engine: str) -> None:
    _C.select_engine(engine)
    net = Net(2, 33, 70, B=3)
    text = torch.randint(70, (15, 3))
    generator = net.generator(precision=precision)
    generator.read(text[:2])
    nats = torch.cat((generator.score(text[2:9]), generator.score(text[9:])))
    logits, h, _ = net.logits(text[:-1], precision)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, text[1:, :, None].numpy(), -1))[1:, :, 0]
    np.testing.assert_allclose(nats, expected, rtol=2e-6, atol=4 * NEAR[precision])
    np.testing.assert_allclose(generator.state[0], h, rtol=0, atol=NEAR[precision])


def test_a_state_goes_on_elsewhere() -> None:
    net = Net(2, 33, 11, B=3)
    one, other = net.generator(), net.generator()
    assert one.last is None
    one.read(net.start())
    one.generate(5)
    other.state, other.last, other.position = one.state, one.last, one.position
    state = other.state
    assert torch.equal(one.generate(5), other.generate(5))
    assert not torch.equal(state[0], other.state[0])  # what was handed out stands still


def test_the_state_is_the_modules() -> None:
    net = Net(2, 33, 11, B=3)
    generator = net.generator()
    generator.read(net.start())
    flat = [w for layer in net.weights for w in layer]
    zeros = torch.zeros(2, 3, 33)
    _, states = lstm(net.start()[:-1], (zeros, zeros), flat, num_layers=2)
    for found, expected in zip(generator.state, states, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("net", [Net(2, 33, 11, B=3), Net(3, 8, 9, B=2, E=4, bias=False)], ids=str)
def test_a_backend_that_only_writes_reads_through_the_layers(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = torch.randint(net.V, (9, net.B))
    found = []
    for _ in range(2):
        generator = net.generator()
        generator.read(text[:4])
        found.append([generator.score(text[4:]), *generator.state, generator.last])
        monkeypatch.delattr(cpu._Writer, "read", raising=False)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_int8_sums_stay_within_32_bits() -> None:
    H = 600
    net = Net(1, H, 7)
    net.weights[0][1].fill_(1.0)  # the largest of a row is 127: all of them
    generator = net.generator(precision="int8")
    generator.state = torch.ones(1, 1, H), torch.ones(1, 1, H)
    generator.read(net.start()[:2])
    h, c = generator.state  # the gates are open: their sums are about 600
    torch.testing.assert_close(c, torch.full_like(c, 2.0))
    torch.testing.assert_close(h, torch.full_like(h, 2.0).tanh())


def test_int8_takes_h_within_its_bounds() -> None:
    net = Net(1, 33, 7)
    states = []
    for h in (1.0, 1.5):
        generator = net.generator(precision="int8")
        generator.state = torch.full((1, 1, 33), -h), torch.zeros(1, 1, 33)
        generator.read(net.start()[:2])
        states.append(generator.state)
    assert all(map(torch.equal, *states))


def test_inference_mode_ends_and_the_text_goes_on() -> None:
    net = Net(1, 5, 7)
    with torch.inference_mode():
        generator = net.generator()
        generator.read(net.start())
    generator.read(generator.generate(3))
    generator.state = generator.state


def test_the_weights_are_copied() -> None:
    net = Net(2, 16, 11)
    kept, changed = net.generator(), net.generator()
    for generator in (kept, changed):
        generator.read(net.start())
    expected = kept.generate(20)
    for tensor in (*itertools.chain(*net.weights), net.decoder, net.decoder_bias):
        tensor.fill_(1.0)
    _C.select_engine("portable")  # nor does it matter who runs by now
    assert torch.equal(changed.generate(20), expected)


def test_other_threads_run_meanwhile() -> None:
    net = Net(1, 256, 64)
    generator = net.generator()
    generator.read(net.start())
    begins, ran = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: begins.wait() and ran.set())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that no one hands over unless he lets go
    try:
        other.start()
        begins.set()
        generator.generate(3000)
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        other.join()


def test_without_a_seed_every_text_is_another() -> None:
    net = Net(1, 4, 200)
    texts = []
    for _ in range(2):
        generator = net.generator(seed=None)
        generator.read(net.start())
        texts.append(generator.generate(50, temperature=5.0))
    assert not torch.equal(*texts)


def without(net: Net, **changed: Any) -> Net:
    for name, value in changed.items():
        setattr(net, name, value)
    return net


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: net.generator(B=0), ValueError, "B must be a whole number, at least 1, got 0"),
        (lambda net: net.generator(seed=2**64), ValueError, "seed must be a whole number, of 64 bits"),
        (lambda net: net.generator(precision="int4"), ValueError, "precision must be one of .*got 'int4'"),
        (lambda net: net.generator(backend="abacus"), ValueError, "backend must be one of .*got 'abacus'"),
        (lambda net: net.generator(backend="eager"), ValueError, "backend='eager' does not write"),
        (
            lambda net: net.generator(embedding=torch.ones(7, 3)),
            RuntimeError,
            r"w_ih of layer 0 .*4\*H, E\].*",
        ),
        (lambda net: without(net, weights=[]).generator(), RuntimeError, "weights must be 2, or 4"),
        (
            lambda net: without(net, weights=[net.weights[0][:3]]).generator(),
            RuntimeError,
            r"weights must be 2, or 4 with biases.*got \[3\]",
        ),
        (
            lambda net: without(net, weights=[net.weights[0], net.weights[0]]).generator(),
            RuntimeError,
            r"w_ih of layer 1 must be \[4\*H, H\] = \[20, 5\], got \[20, 7\]",
        ),
        (
            lambda net: without(net, decoder_bias=torch.ones(8)).generator(),
            RuntimeError,
            r"decoder_bias must be \[V\] = \[7\], got \[8\]",
        ),
        (
            lambda net: without(net, decoder=torch.ones(7, 5, dtype=torch.int64)).generator(),
            RuntimeError,
            "decoder_weight must be floating point on cpu, got torch.int64",
        ),
        (
            lambda net: without(net, decoder_bias=[0.0] * 7).generator(),
            TypeError,
            "decoder_bias must be a Tensor, got list",
        ),
        (
            lambda net: without(net, decoder_bias=torch.full((7,), torch.nan)).generator(),
            ValueError,
            "decoder_bias must be finite",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(Net(1, 5, 7))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: g.generate(-1), ValueError, "count must be a whole number, at least 0, got -1"),
        (lambda g: g.generate(1.0), ValueError, r"count must be a whole number.*got 1\.0"),
        (lambda g: g.generate(1, -0.5), ValueError, r"temperature must be a finite number.*got -0\.5"),
        (lambda g: g.generate(1, float("nan")), ValueError, "temperature must be a finite number"),
        (lambda g: g.generate(1, top_k=-2), ValueError, "top_k must be .*got -2"),
        (lambda g: g.generate(1, top_p=0.0), ValueError, "top_p must be above 0 and at most 1, got 0"),
        (lambda g: g.generate(1, min_p=1.5), ValueError, r"min_p must be .*got 1\.5"),
        (lambda g: g.read(torch.zeros(3, dtype=torch.int64)), RuntimeError, r"ids must be \[T, B\].*B = 2"),
        (lambda g: g.read(torch.zeros(0, 2, dtype=torch.int64)), RuntimeError, "T >= 1"),
        (lambda g: g.read(torch.zeros(3, 2)), RuntimeError, r"ids must be torch\.int64 on cpu"),
        (lambda g: g.score(torch.full((3, 2), 7)), IndexError, "0 <= id < V = 7, got 7"),
        (lambda g: setattr(g, "last", torch.tensor([0, -1])), IndexError, "got -1"),
        (
            lambda g: setattr(g, "state", (torch.zeros(1, 2, 5), torch.zeros(1, 2, 4))),
            RuntimeError,
            "c must be",
        ),
        (
            lambda g: setattr(g, "state", (torch.full((1, 2, 5), torch.nan),) * 2),
            ValueError,
            "h must be finite",
        ),
    ],
)
def test_a_wrong_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    generator = Net(1, 5, 7, B=2).generator()
    generator.read(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(error, match=message):
        call(generator)


@pytest.mark.parametrize("method", ["generate", "score"])
def test_there_is_nothing_to_go_on_from(method: str) -> None:
    net = Net(1, 5, 7)
    with pytest.raises(RuntimeError, match=f"{method} needs a character"):
        getattr(net.generator(), method)(5 if method == "generate" else net.start())
