"""The kernel that writes text, run by the shim on the CPU: against float64, and with planted faults."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cuda_on_cpu
from fusedlstm import reference
from test_cuda_faults import SYNC, Fault, built_with

if reason := cuda_on_cpu.missing():
    pytest.skip(reason, allow_module_level=True)

NAME = "fusedlstm.backends.cuda.generate"
ORDERS = (0, 1, 2)  # in turns, in no order
FAULT_ORDERS = 12
NEAR = 1e-5  # of a border between two characters: there float32 may choose the other one
FIRST = 2**33 + 5  # a position of more than 32 bits
# The kernels of generate.cu and no others; each fault stands behind a question which of them is planted.
TABLES = """
extern "C" { int planted = 0; }
#include "table.cuh"
namespace fusedlstm::gpu {
void add_block(std::vector<ForwardEntry>&, std::vector<BackwardEntry>&) {}
void add_cluster(std::vector<ForwardEntry>&, std::vector<BackwardEntry>&) {}
void add_grid(std::vector<ForwardEntry>&, std::vector<BackwardEntry>&) {}
}  // namespace fusedlstm::gpu
#include "generate.cu"
"""
Choice = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p
ALL: Choice = (1.0, 0, 1.0, 0.0)
CHOICES: list[Choice] = [
    ALL, (0.0, 0, 1.0, 0.0), (0.0, 3, 0.5, 0.5), (0.5, 0, 1.0, 0.0), (1.5, 3, 1.0, 0.0), (1.0, 1, 1.0, 0.0),
    (1.0, 0, 0.6, 0.0), (1.0, 0, 1e-60, 0.0), (1.0, 0, 1.0, 0.2), (0.8, 9, 0.8, 0.1), (1.0, 1000, 0.999, 1.0),
]  # fmt: skip
States = tuple[np.ndarray, np.ndarray, np.ndarray]  # h, c, the last characters


@dataclass
class Stack:
    """As fusedlstm.generate makes it of a model."""

    table: Tensor
    weights: Tensor
    biases: Tensor
    decoder: Tensor
    decoder_bias: Tensor


@dataclass(frozen=True)
class Model:
    """L layers of H hidden units, V characters; with twins two of them are always equally likely."""

    L: int
    H: int
    V: int
    twins: bool = False

    @functools.cached_property
    def stack(self) -> Stack:
        random = torch.Generator().manual_seed(self.L + self.H + self.V)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        H, V = self.H, self.V
        stack = Stack(
            normal(V, 4 * H), normal(2 * self.L - 1, 4 * H, H) / H**0.5, normal(self.L - 1, 4 * H),
            normal(V, H) * 3 / H**0.5, normal(V) / 2,
        )  # fmt: skip
        if self.twins:
            stack.decoder[1::2], stack.decoder_bias[1::2] = stack.decoder[::2], stack.decoder_bias[::2]
        return stack

    def rounded(self, precision: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """The weights that the reference takes, its decoder, and the decoder's bias."""
        s = self.stack
        kept = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        weights, decoder = (t.to(kept).double().numpy() for t in (s.weights, s.decoder))
        none, layers = np.zeros(4 * self.H), [s.table.double().numpy().T, weights[0]]
        flat = [*layers, none, none]
        for k, bias in enumerate(s.biases.double().numpy()):
            flat += [weights[2 * k + 1], weights[2 * k + 2], bias, none]
        return flat, decoder, s.decoder_bias.double().numpy()


def philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of a key of 64 bits."""
    words, keys = counter, [key % 2**32, key >> 32]
    for _ in range(10):
        even, odd = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = (
            odd >> 32 ^ words[1] ^ keys[0], odd % 2**32, even >> 32 ^ words[3] ^ keys[1], even % 2**32
        )  # fmt: skip
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return words


def drawn(logits: np.ndarray, uniform: float, choice: Choice) -> tuple[int, float]:
    """The character, and how far the number is from drawing another one."""
    temperature, top_k, top_p, min_p = choice
    if temperature == 0:
        return int(logits.argmax()), 1.0
    p = np.exp((logits - logits.max()) / temperature)
    likeliest = sorted(range(len(p)), key=lambda v: (-p[v], v))[: top_k or None]
    before = np.cumsum([0, *p[likeliest]])
    left = [v for n, v in enumerate(likeliest) if n == 0 or top_p == 1 or before[n] < top_p * before[-1]]
    q = np.zeros_like(p)
    q[left] = np.where(p[left] >= min_p, p[left], 0)
    ends = np.cumsum(q) / q.sum()
    return int(np.searchsorted(ends, uniform, "right")), float(
        np.abs(ends[q > 0][:-1] - uniform).min(initial=1)
    )


def written(
    model: Model, precision: str, seed: int, states: States, count: int, first: int, choice: Choice
) -> tuple[np.ndarray, States, float]:
    """What the reference writes, its states, and the nearest that a number came to another character."""
    weights, decoder, bias = model.rounded(precision)
    h, c, last = states
    ids, nearest = [], 1.0
    for t in range(first, first + count):
        result = reference.forward(last[None], weights, h, c, num_layers=model.L)
        h, c, logits = result.h_n, result.c_n, result.y[0] @ decoder.T + bias
        numbers = [philox(seed, (b, 0, t % 2**32, t >> 32))[0] / 2**32 for b in range(len(last))]
        chosen = [drawn(*pair, choice) for pair in zip(logits, numbers, strict=True)]
        last = np.array([id for id, _ in chosen])
        nearest = min(nearest, *(near for _, near in chosen))
        ids.append(last)
    return np.stack(ids), (h, c, last), nearest


def begin(model: Model, B: int) -> States:
    """States and characters to go on from."""
    random = np.random.default_rng(B)
    h, c = random.uniform(-1, 1, (2, model.L, B, model.H)).astype(np.float32)
    return h.astype(float), c.astype(float), random.integers(model.V, size=B)


F, D, ROUNDS = "generate.cuh", "draw.cuh", "struct Rounds"
ACQUIRE, RELEASE = "load_acquire(flags + from) < round", "store_release(flags + slice, round);"
DRAW, FILTER = "void draw(", "void filter("
PLANTED: list[tuple[str, str, tuple[str, ...], str, str]] = [
    ("no barrier in give", F, (ROUNDS, "void give("), SYNC, ""),
    ("no meeting before the flag", F, (ROUNDS,), "sync_some(1, 32);", ""),
    ("no barrier behind the pieces", F, (ROUNDS, "load_16"), SYNC, ""),
    ("no wait", F, (ROUNDS,), ACQUIRE, "false"),
    ("no acquire", F, (ROUNDS,), ACQUIRE, "flags[from] < round"),
    ("a flag of one less", F, (ROUNDS,), ACQUIRE, "load_acquire(flags + from) < round - 1"),
    ("a flag of one more", F, (ROUNDS,), RELEASE, "store_release(flags + slice, round + 1);"),
    ("no release", F, (ROUNDS,), RELEASE, "flags[slice] = round;"),
    ("a block too few", F, (ROUNDS,), "from < slices", "from < slices - 1"),
    ("one buffer of mail", F, (ROUNDS,), "round % 2", "0"),
    ("no barrier in the sums", F, ("auto end",), SYNC, ""),
    ("no barrier between the decoder's turns", F, ("stage[k *",), SYNC, ""),
    ("no barrier before the first character", F, ("drawing.ids[thread] =",), SYNC, ""),
    ("W_ih for W_hh", F, ("begin();",), "2 * l - 1", "2 * l"),
    ("the layer's own h from below", F, ("begin();", "2 * l - 1"), "h_of(l - 1)", "h_of(l)"),
    ("another quad of the decoder", F, ("auto draw_next",), "k * n.slices + from", "from * n.slices + k"),
    ("one random number for all", F, ("auto draw_next",), "a.first + s", "a.first"),
    ("one random number for all streams", D, ("counter[4] =",), "stream", "0"),
    ("positions of 32 bits", D, (), "position >> 32", "0 * position"),
    ("nine rounds of ten", D, (), "round < 10", "round < 9"),
    ("another stream's character", F, ("float* row",), "drawing.ids[lane]", "drawing.ids[0]"),
    ("no barrier behind the largest", D, (DRAW,), SYNC, ""),
    ("no barrier behind the softmax", D, (DRAW, "expf"), SYNC, ""),
    ("no barrier behind the ranks", D, (FILTER,), SYNC, ""),
    ("no barrier behind the filters", D, (FILTER, "choice.min_p"), SYNC, ""),
    ("no barrier behind the parts", D, (DRAW, "+= at.left"), SYNC, ""),
    ("a character published early", D, (DRAW, "at.ids[thread] = id;"), SYNC, ""),
    ("the next character", D, (DRAW,), "id = v;", "id = v + 1;"),
    ("the character before", D, (DRAW,), "before <= goal", "before + left[v] <= goal"),
    ("a part too far", D, (DRAW,), "sum <= goal", "sum <= goal + parts[k]"),
    ("the last of a part left out", D, (DRAW,), "v < (lane + 1) * part", "v < (lane + 1) * part - 1"),
    ("times the temperature", D, (DRAW,), "(p - largest) / choice.temperature",
          "(p - largest) * choice.temperature"),
    ("equals the other way", D, (FILTER,), "other < v", "other > v"),
    ("top_k of one less", D, (FILTER,), "rank <= last", "rank < last"),
    ("top_p of all", D, (FILTER,), "choice.top_p < 1.0f", "false"),
    ("no min_p", D, (FILTER,), "p >= choice.min_p", "p >= 0.0f"),
    ("no room for the last weights", F, ("s.bytes =",), "n.kept * 4 * 32 * 16", "n.kept * 4 * 32 * 16 - 16"),
]  # fmt: skip
FAULTS = [Fault(name, "grid", *rest) for name, *rest in PLANTED]


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    with built_with(FAULTS, TABLES, "persistent_*") as built:
        yield built


@pytest.fixture(autouse=True)
def writing(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Iterator[ModuleType]:
    """fusedlstm.backends.cuda.generate, as if an H100 had the CPU's tensors."""
    monkeypatch.setitem(sys.modules, NAME, module)  # so that what was there comes back
    del sys.modules[NAME]
    cuda = cuda_on_cpu.install(monkeypatch, module)
    generate = importlib.import_module(NAME)
    monkeypatch.setattr(generate, "_card", lambda device: cuda.Card(132, 227 << 10, (9, 0)))
    yield generate
    plant(module, 0, 0)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch, writing: ModuleType) -> Callable[..., None]:
    """Has blocks of so many units serve, which keep at most so many steps of their weights."""
    every = writing.plans

    def so(units: int, kept: int = 1 << 20) -> None:
        def plans(*args: Any) -> list[Any]:
            found = [plan for plan in every(*args) if plan.units == units]
            return [dataclasses.replace(plan, kept=min(plan.kept, kept)) for plan in found]

        monkeypatch.setattr(writing, "plans", plans)

    return so


def plant(module: ModuleType, number: int, order: int) -> None:
    ctypes.c_int.in_dll(module.shim, "planted").value = number
    module.shim.shim_seed(order)


def writer(writing: ModuleType, model: Model, precision: str, seed: int, states: States) -> Any:
    made = writing.generator(model.stack, len(states[2]), precision, seed)
    for tensor, values in zip((made.h, made.c, made.last), states, strict=True):
        tensor.copy_(torch.from_numpy(values))
    return made


def same_bits(found: Any, other: Any) -> bool:
    return all(torch.equal(getattr(found, name), getattr(other, name)) for name in ("h", "c", "last"))


def assert_states(found: Any, truth: States, model: Model) -> None:
    """Within 16 roundings of float32 at each of the states' few steps."""
    for name, values in zip(("h", "c"), truth[:2], strict=True):
        error = np.abs(getattr(found, name).numpy() - values).max()
        assert error < 16 * np.finfo(np.float32).eps * max(1, np.abs(values).max()), (
            f"{name} is off by {error}"
        )
    np.testing.assert_array_equal(found.last.numpy(), truth[2])


CASES = [
    (Model(1, 4, 3), 1, "float32", 12, ALL),
    (Model(1, 20, 33), 2, "bfloat16", 8, ALL),
    (Model(2, 32, 17), 1, "float32", 10, ALL),
    (Model(2, 33, 32), 3, "bfloat16", 6, (0.7, 8, 0.9, 0.05)),
    (Model(3, 12, 65), 8, "float32", 6, ALL),
    (Model(4, 24, 30), 5, "bfloat16", 5, (1.3, 0, 0.9, 0.0)),
    (Model(2, 132, 9), 1, "float32", 3, ALL),
    (Model(2, 260, 9), 1, "bfloat16", 3, ALL),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "B", "precision", "count", "choice"),
    CASES,
    ids=[f"{case[0]}-{case[1]}-{case[2]}" for case in CASES],
)
def test_it_writes_what_the_reference_writes(
    module: ModuleType, writing: ModuleType, model: Model, B: int, precision: str, count: int, choice: Choice
) -> None:
    for seed in (3, 2**64 - 3):
        states = begin(model, B)
        truth, after, nearest = written(model, precision, seed, states, count, FIRST, choice)
        assert nearest > NEAR, "take another seed: here rounding decides"
        for order in ORDERS:
            module.shim.shim_seed(order)
            found = writer(writing, model, precision, seed, states)
            np.testing.assert_array_equal(found.generate(count, FIRST, *choice).numpy(), truth)
            assert_states(found, after, model)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("twins", [False, True])
def test_every_choice(writing: ModuleType, choice: Choice, twins: bool) -> None:
    model, states = Model(1, 8, 38, twins), begin(Model(1, 8, 38), 8)
    truth, _, nearest = written(model, "float32", 4, states, 6, 0, choice)
    assert nearest > NEAR, "take another seed: here rounding decides"
    found = writer(writing, model, "float32", 4, states).generate(6, 0, *choice)
    np.testing.assert_array_equal(found.numpy(), truth)


def test_however_a_text_is_asked_for_it_is_the_same(writing: ModuleType) -> None:
    model, states = Model(2, 32, 17), begin(Model(2, 32, 17), 2)
    whole, pieces = (writer(writing, model, "float32", 5, states) for _ in range(2))
    ids = whole.generate(10, 7, *ALL)
    first = pieces.generate(4, 7, *ALL)
    assert torch.equal(ids, torch.cat((first, pieces.generate(1, 11, *ALL), pieces.generate(5, 12, *ALL))))
    assert same_bits(whole, pieces) and len(ids.unique()) > 3
    assert not torch.equal(ids, writer(writing, model, "float32", 6, states).generate(10, 7, *ALL))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_however_the_units_are_cut_and_the_weights_kept_the_bits_are_the_same(
    writing: ModuleType, cut: Callable[..., None], precision: str
) -> None:
    model = Model(2, 132 if precision == "float32" else 260, 70)
    states, found = begin(model, 1), []
    for units, kept in ((8, 0), (12, 1), (16, 3), (8, 1 << 20), (16, 1 << 20)):
        cut(units, kept)
        made = writer(writing, model, precision, 1, states)
        found.append((made, made.generate(2, 0, *ALL)))
    assert {made._plan.kept for made, _ in found} > {0, 1, 3} and len(
        {made._plan.slices for made, _ in found}
    ) == 3
    for made, ids in found[1:]:
        assert torch.equal(ids, found[0][1]) and same_bits(made, found[0][0])


def test_a_stream_does_not_depend_on_those_beside_it(writing: ModuleType) -> None:
    model, states = Model(2, 16, 12), begin(Model(2, 16, 12), 8)
    all_ids = writer(writing, model, "float32", 2, states).generate(5, 0, *ALL)
    kernels = set()
    for B in (1, 3, 4, 5):
        h, c, last = states
        made = writer(writing, model, "float32", 2, (h[:, :B], c[:, :B], last[:B]))
        assert torch.equal(made.generate(5, 0, *ALL), all_ids[:, :B])
        kernels.add(made._plan.kernel.streams)
    assert kernels == {1, 4, 8}


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_kept_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, writing: ModuleType, precision: str, B: int
) -> None:
    model, states = Model(2, 13, 21), begin(Model(2, 13, 21), B)
    plain, made = (writer(writing, model, precision, 4, states) for _ in range(2))
    for name in ("_weights", "_table", "_bias", "_decoder_bias", "h", "c", "last"):
        setattr(made, name, cuda_on_cpu.guarded(module.shim, getattr(made, name)))
    mail = tuple(cuda_on_cpu.guarded(module.shim, tensor) for tensor in made._mail())
    monkeypatch.setattr(made, "_mail", lambda: mail)
    assert torch.equal(made.generate(4, 0, *ALL), plain.generate(4, 0, *ALL)) and same_bits(made, plain)
    assert mail[1].unique().tolist() == [4 * (model.L + 1)]  # each block gave in all rounds
    made.h = cuda_on_cpu.guarded(module.shim, made.h.flatten()[:-4])
    with pytest.raises(RuntimeError, match=r"that writes text: block .* byte \d+ of a buffer"):
        made.generate(1, 0, *ALL)


def test_numbers_that_are_none_choose_a_character_of_the_vocabulary(writing: ModuleType) -> None:
    model = Model(1, 8, 38)
    for value in (float("nan"), float("inf"), -float("inf"), 1e38):
        stack = dataclasses.replace(model.stack, decoder_bias=torch.full((38,), value))
        for choice in CHOICES:
            ids = writing.generator(stack, 2, "float32", 0).generate(2, 0, *choice)
            assert 0 <= int(ids.min()) <= int(ids.max()) < 38


def test_it_says_why_not(writing: ModuleType) -> None:
    small = Model(1, 8, 5).stack
    for B, precision, words in (
        (9, "float32", "writes 1 to 8 streams at once, not 9"),
        (1, "int8", "keeps weights in float32 or bfloat16, not int8"),
    ):
        with pytest.raises(ValueError, match=words):
            writing.generator(small, B, precision, 0)
    device = torch.device("cpu")
    assert writing.supports(writing.Sizes(2, 512, 65, 1), "float32", device) is None
    assert "H=9000" in str(writing.supports(writing.Sizes(2, 9000, 65, 1), "float32", device))
    assert "V=99999 with B=8 does not fit" in str(
        writing.supports(writing.Sizes(2, 64, 99999, 8), "float32", device)
    )
    made = writing.generator(small, 1, "float32", 0)
    with pytest.raises(ValueError, match=r"count must be at most 2147483647, got 2147483648"):
        made.generate(2**31, 0, *ALL)
    made._plan = dataclasses.replace(made._plan, units=6)
    with pytest.raises(RuntimeError, match="kernel that writes text: the plan does not fit the kernel"):
        made.generate(1, 0, *ALL)


CARDS = {"H100": (132, 227 << 10, (9, 0)), "A100": (108, 163 << 10, (8, 0)),
         "RTX 4090": (128, 99 << 10, (8, 9))}  # fmt: skip
SIZES = [(1, 64, 65), (2, 512, 65), (2, 512, 256), (3, 512, 96), (2, 768, 256), (2, 1024, 65), (4, 1024, 256)]


@pytest.mark.parametrize("name", CARDS)
def test_plans_stay_on_the_card(writing: ModuleType, module: ModuleType, name: str) -> None:
    card = writing.Card(*CARDS[name])
    for (L, H, V), B, precision in itertools.product(SIZES, (1, 2, 8), writing.DTYPES):
        sizes = writing.Sizes(L, H, V, B)
        plans = writing.plans(sizes, precision, card, writing._kernels(), module.generate_shared_bytes)
        assert plans or (B == 8 and name != "H100"), sizes
        times = [plan.terms.character_us for plan in plans]
        assert times == sorted(times) and all(time > 0 for time in times)
        for plan in plans:
            assert plan.kernel.precision == precision and plan.kernel.streams >= B
            assert plan.slices <= card.multiprocessors and H <= plan.slices * plan.units < H + plan.units
            assert plan.units % 4 == 0 and plan.units * 32 <= plan.kernel.threads
            assert module.generate_shared_bytes(plan.kernel.number, plan.told(sizes)) == plan.shared_bytes
            assert plan.shared_bytes <= card.shared_bytes
            full = plan.shared_bytes + plan.units * 2048 > card.shared_bytes
            assert full or plan.kept == (2 * L - 1 + plan.turns) * plan.steps


def test_what_fits_is_predicted_to_be_faster_than_what_does_not(writing: ModuleType) -> None:
    def predicted(L: int, H: int, V: int, B: int, precision: str) -> Any:
        sizes, kernels = writing.Sizes(L, H, V, B), writing._kernels()
        shared_bytes = writing._cuda.generate_shared_bytes
        return writing.plans(sizes, precision, writing._card(None), kernels, shared_bytes)[0]

    one = predicted(2, 512, 65, 1, "float32")
    assert (one.slices, one.units, one.kept) == (128, 4, 4 * one.steps)
    assert one.terms.character_us < 10  # the model's word for 100,000 characters a second
    large, half = predicted(3, 1024, 65, 1, "float32"), predicted(3, 1024, 65, 1, "bfloat16")
    assert large.kept < 6 * large.steps and half.terms.character_us < large.terms.character_us


def test_philox_is_the_published_one() -> None:
    """Known answers of its authors' library, Random123."""
    full, pi = 2**32 - 1, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(2**64 - 1, (full,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox(0x299F31D0_A4093822, pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


# Two turns of the decoder, a part of the softmax of two characters, padding streams, equals, all filters.
FAULT_MODEL, FAULT_SEED = Model(2, 12, 52, twins=True), 1
FAULT_CALLS: list[tuple[int, Choice]] = [
    (2, (0.8, 7, 0.8, 0.1)), (1, (1.0, 0, 0.3, 0.0)),
    (1, (1.0, 0, 1.0, 0.5)), (1, (0.0, 1, 1.0, 0.0)), (2, ALL),
]  # fmt: skip


@functools.cache
def fault_truth() -> list[tuple[np.ndarray, States]]:
    states, position, found = begin(FAULT_MODEL, 3), FIRST, []
    for count, choice in FAULT_CALLS:
        ids, states, nearest = written(FAULT_MODEL, "float32", FAULT_SEED, states, count, position, choice)
        assert nearest > NEAR, "take another seed: here rounding decides"
        position += count
        found.append((ids, states))
    return found


def went_wrong(module: ModuleType, writing: ModuleType, number: int) -> str:
    """What parity, or the shim, says of the fault, or nothing."""
    for order in range(FAULT_ORDERS + 1):
        plant(module, number, order)
        try:
            made, position = writer(writing, FAULT_MODEL, "float32", FAULT_SEED, begin(FAULT_MODEL, 3)), FIRST
            for (count, choice), (ids, states) in zip(FAULT_CALLS, fault_truth(), strict=True):
                np.testing.assert_array_equal(made.generate(count, position, *choice).numpy(), ids)
                assert_states(made, states, FAULT_MODEL)
                position += count
        except (AssertionError, RuntimeError) as error:
            return f"order {order}: {error}"
    return ""


def test_without_a_fault_nothing_is_wrong(
    module: ModuleType, writing: ModuleType, cut: Callable[..., None]
) -> None:
    cut(4)
    assert went_wrong(module, writing, 0) == ""
    assert writing.generator(FAULT_MODEL.stack, 3, "float32", 0)._plan.turns == 2


@pytest.mark.parametrize(
    "number", range(1, len(FAULTS) + 1),
    ids=[re.sub(r"\W+", "-", f"{fault.file} {fault.name}") for fault in FAULTS],
)  # fmt: skip
def test_a_fault_is_caught(
    module: ModuleType, writing: ModuleType, cut: Callable[..., None], number: int
) -> None:
    cut(4)
    said = went_wrong(module, writing, number)
    print(said)
    assert said, f"{FAULTS[number - 1]} survives orders 0 to {FAULT_ORDERS}"
