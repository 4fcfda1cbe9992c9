"""Sequences that start anew, beyond the parity of cases.py: layouts, errors, derivatives, tracing."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)  # fmt: skip

import fusedlstm
from cases import BACKENDS
from fusedlstm import functional
from fusedlstm.backends import Spec, resolve, takes_resets
from fusedlstm.ops import layer_bwd, layer_fwd
from fusedlstm.resets import cut, fresh_rows

T, B, I, H = 5, 4, 3, 6  # noqa: E741
OPS = [name for name in BACKENDS if name != "torch"]
MASKS = [name for name in BACKENDS if takes_resets(name)]
LENGTHS = [3, 5, 1, 4]
# At the first step, nowhere, at the last step, at several in a row.
RESETS = torch.tensor(
    [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool
)
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "two layers, bi": {"num_layers": 2, "bidirectional": True}}


def make(backend: str = "auto", **options: Any) -> tuple[fusedlstm.LSTM, Tensor, tuple[Tensor, Tensor]]:
    """A module, its input and its first states, in float64."""
    module = fusedlstm.LSTM(I, H, dtype=torch.float64, backend=backend, **options)
    states = module.num_layers * (1 + module.bidirectional)
    h0, c0 = torch.randn(2, states, B, H, dtype=torch.float64)
    return module, torch.randn(T, B, I, dtype=torch.float64), (h0, c0)


def alone(module: fusedlstm.LSTM, x: Tensor, resets: Tensor, hx: tuple[Tensor, Tensor]) -> Any:
    """The same of one sequence [T, I], one piece after another."""
    reverse = (torch.arange(len(hx[0])) % (1 + module.bidirectional) == 1)[:, None]
    bounds = sorted({0, *resets.nonzero().flatten().tolist(), len(x)})
    y, h_n, c_n = [], *(torch.zeros_like(state) for state in hx)
    for first, end in itertools.pairwise(bounds):
        given = torch.where(reverse, end == len(x), first == 0 and not resets[0])
        ends = torch.where(reverse, first == 0, end == len(x))
        part, (h, c) = torch.nn.LSTM.forward(
            module, x[first:end], (hx[0].where(given, 0), hx[1].where(given, 0))
        )
        y.append(part)
        h_n, c_n = torch.where(ends, h, h_n), torch.where(ends, c, c_n)
    return torch.cat(y), h_n, c_n


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("layout", ["batched", "batch_first", "sorted", "unsorted"])
def test_every_layout(layout: str, options: dict[str, Any], backend: str) -> None:
    module, x, hx = make(backend, batch_first=layout == "batch_first", **options)
    lengths = {"sorted": sorted(LENGTHS, reverse=True), "unsorted": LENGTHS}.get(layout, [T] * B)
    if layout == "batch_first":
        y, (h_n, c_n) = module(x.transpose(0, 1), hx, RESETS.t())
        y = y.transpose(0, 1)
    elif layout == "batched":
        y, (h_n, c_n) = module(x, hx, resets=RESETS)
    else:
        rows, resets = (
            pack_padded_sequence(t, torch.tensor(lengths), enforce_sorted=layout == "sorted")
            for t in (x, RESETS)
        )
        y, (h_n, c_n) = module(rows, hx, resets)
        y, _ = pad_packed_sequence(y)
    for b, n in enumerate(lengths):
        expected = alone(module, x[:n, b], RESETS[:n, b], (hx[0][:, b], hx[1][:, b]))
        torch.testing.assert_close((y[:n, b], h_n[:, b], c_n[:, b]), expected)
        if layout == "batched":
            y_b, states = module(x[:, b], (hx[0][:, b], hx[1][:, b]), RESETS[:, b])
            torch.testing.assert_close((y_b, *states), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_packed_sequence_of_anothers_order(backend: str) -> None:
    module, x, _ = make(backend)
    rows = pack_sequence([x[:n, b] for b, n in enumerate(LENGTHS)], enforce_sorted=False)
    resets = rows._replace(data=pack_sequence([RESETS[:n, b] for b, n in enumerate(LENGTHS)], False).data)
    y = module(rows, None, resets)[0]
    for one, b, n in zip(unpack_sequence(y), range(B), LENGTHS, strict=True):
        torch.testing.assert_close(one, module(x[:n, b], resets=RESETS[:n, b])[0])


@pytest.mark.parametrize("backend", OPS)
def test_ids(backend: str) -> None:
    module, _, hx = make(backend)
    ids = torch.randint(I, (T, B))
    rows = torch.nn.functional.one_hot(ids, I).double()
    torch.testing.assert_close(module(ids, hx, RESETS), module(rows, hx, RESETS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_border_changes_nothing(options: dict[str, Any], backend: str) -> None:
    module, x, hx = make(backend, **options)
    torch.testing.assert_close(module(x, hx, torch.zeros(T, B, dtype=torch.bool)), module(x, hx))


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_with_carried_states_equal_one_run(backend: str) -> None:
    module, x, hx = make(backend, num_layers=2)
    whole, ends = module(x, hx, RESETS)
    parts = []
    for rows, resets in zip(x.split(2), RESETS.split(2), strict=True):
        y, hx = module(rows, hx, resets)
        parts.append(y)
    torch.testing.assert_close((torch.cat(parts), hx), (whole, ends))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_crosses_a_border(bad: float, backend: str) -> None:
    module, x, (h0, c0) = make(backend, bidirectional=True)
    h0[0, 0], c0[0, 0] = bad, bad  # sequence 0 starts anew at step 0: direction 0 never reads these
    x[3, 3] = bad  # between two borders of sequence 3, alone
    leaves = [t.requires_grad_() for t in (x, h0, c0)]
    with torch.backends.mkldnn.flags(enabled=False):
        y, (h_n, c_n) = module(x, (h0, c0), RESETS)
    resets = RESETS.clone()
    resets[4, 3] = True
    y_cut, _ = module(x, (h0, c0), resets)
    assert y[:, :3].isfinite().all() and y[:3, 3].isfinite().all()
    assert y_cut[:3, 3].isfinite().all() and y_cut[4, 3].isfinite().all()
    assert h_n[:, :3].isfinite().all() and c_n[:, :3].isfinite().all()
    (y[:, :3].sum() + h_n[:, :3].sum() + c_n[:, :3].sum()).backward()
    dx, dh0, dc0 = (t.grad for t in leaves)
    assert all(t is not None and t[:, :3].isfinite().all() for t in (dx, dh0, dc0))
    assert not dh0[0, 0].any() and not dc0[0, 0].any()  # type: ignore[index]
    assert dh0[1, 0].all() and dh0[0, 1].all() and dc0[0, 1].all()  # type: ignore[index]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_end_at_borders(backend: str) -> None:
    module, x, hx = make(backend, num_layers=2, bidirectional=True)
    for b in range(B):
        bounds = sorted({0, *RESETS[:, b].nonzero().flatten().tolist(), T})
        for first, end in itertools.pairwise(bounds):
            leaf = x.clone().requires_grad_()
            module(leaf, hx, RESETS)[0][first, b].sum().backward()
            assert leaf.grad is not None
            reached = leaf.grad.abs().sum(2) > 0
            expected = torch.zeros(T, B, dtype=torch.bool)
            expected[first:end, b] = True
            assert torch.equal(reached, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_everything_and_no_gradient(backend: str) -> None:
    with torch.no_grad():
        module, x, hx = make(backend, num_layers=2, dropout=1.0)
        y, _ = module(x, hx, RESETS)
        second = fusedlstm.LSTM(H, H, dtype=torch.float64, backend="eager")
        names = dict(second.named_parameters())
        second.load_state_dict({n: getattr(module, n.replace("l0", "l1")) for n in names})
        hx = hx[0][1:], hx[1][1:]
        torch.testing.assert_close(y, second(torch.zeros(T, B, H, dtype=torch.float64), hx, RESETS)[0])


@pytest.mark.parametrize("backend", OPS)
def test_autocast(backend: str) -> None:
    module, x, hx = make(backend)
    module, x, hx = module.float(), x.float(), (hx[0].float(), hx[1].float())
    exact = module(x, hx, RESETS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, states = module(x, hx, RESETS)
    assert {t.dtype for t in (y, *states)} == {torch.bfloat16}
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=0.02)
    y.float().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend: str) -> None:
    module, _, _ = make(backend, num_layers=2)
    x, resets = torch.zeros(T, 0, I, dtype=torch.float64), torch.zeros(T, 0, dtype=torch.bool)
    y, (h_n, c_n) = module(x, resets=resets)
    assert y.shape == (T, 0, H) and h_n.shape == c_n.shape == (2, 0, H)


def test_the_meta_device() -> None:
    module = fusedlstm.LSTM(I, H, device="meta")
    y, _ = module(torch.empty(T, B, I, device="meta"), resets=RESETS.to("meta"))
    assert y.shape == (T, B, H) and y.is_meta


def test_copies_and_state_dicts_are_as_before() -> None:
    module, x, hx = make(num_layers=2)
    expected = module(x, hx, RESETS)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(x, hx, RESETS), expected, rtol=0, atol=0)
    assert module.state_dict().keys() == torch.nn.LSTM(I, H, 2).state_dict().keys()


# The arguments of forward, and what the error must say.
WRONG: dict[str, tuple[Callable[[Tensor], tuple], type[Exception], str]] = {
    "no tensor": (lambda x: (x, None, [[True]]), TypeError, "resets must be a Tensor, got list"),
    "packed": (
        lambda x: (x, None, pack_sequence([RESETS])), TypeError,
        "resets must be a Tensor, got PackedSequence",
    ),
    "shape": (
        lambda x: (x, None, RESETS.t()), RuntimeError, r"resets must be \[T, B\] = \[5, 4\], got \[4, 5\]",
    ),
    "unbatched": (
        lambda x: (x[:, 0], None, RESETS[:, :1]), RuntimeError, r"resets must be \[T\] = \[5\], got \[5, 1\]",
    ),
    "dtype": (
        lambda x: (x, None, RESETS.long()), RuntimeError,
        r"torch.bool, got torch.int64: convert with .bool\(\)",
    ),
    "device": (
        lambda x: (x, None, RESETS.to("meta")), RuntimeError, "device of the input, cpu, got meta: use .to",
    ),
    "padded for packed": (
        lambda x: (pack_sequence([*x.unbind(1)]), None, RESETS), TypeError,
        "resets must be a PackedSequence, as the input is, got Tensor",
    ),
    "too few rows": (
        lambda x: (pack_sequence([*x.unbind(1)]), None, pack_sequence([RESETS[:, 0]])), RuntimeError,
        r"resets must be a PackedSequence of \[N\] = \[20\], got \[5\]",
    ),
    "other lengths": (
        lambda x: (pack_sequence([x[:3, 0], x[:1, 0]]), None, pack_sequence([RESETS[:2, 0]] * 2)),
        RuntimeError, "resets must have the lengths and the order of the input, got another batch_sizes",
    ),
    "other order": (
        lambda x: (
            pack_sequence([x[:1, 0], x[:3, 0]], False), None, pack_sequence([RESETS[:3, 0], RESETS[:1, 0]]),
        ),
        RuntimeError, "got another sorted_indices: pack them as the input was packed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_resets(wrong: str, backend: str) -> None:
    arguments, error, message = WRONG[wrong]
    module, x, _ = make(backend)
    with pytest.raises(error, match=message):
        module(*arguments(x))


def test_batch_first_is_named_in_the_error() -> None:
    module, x, _ = make(batch_first=True)
    with pytest.raises(RuntimeError, match=r"resets must be \[B, T\] = \[4, 5\], got \[5, 4\]"):
        module(x.transpose(0, 1), resets=RESETS)


def test_explain_names_resets() -> None:
    module, x, _ = make()
    assert "(bias, grad, resets)" in fusedlstm.explain(module, x, RESETS)
    assert "resets" not in fusedlstm.explain(module, x)


def layer(masks: bool = True, packed: bool = True, grads: bool = True) -> tuple[Any, ...]:
    """x, batch_sizes, h0, c0 and weights of a bidirectional layer, and fresh."""
    sizes = torch.tensor([4, 3, 3, 2, 1]) if packed else None
    N = T * B if sizes is None else int(sizes.sum())

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_(grads)

    weights = [normal(*shape) for shape in [(4 * H, I), (4 * H, H), (4 * H,), (4 * H,)] * 2]
    fresh = fresh_rows(torch.rand(N) < 0.4, sizes, B, 2)
    return normal(N, I), sizes, normal(2, B, H), normal(2, B, H), weights, fresh


@pytest.mark.parametrize("backend", MASKS)
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool, backend: str) -> None:
    *call, fresh = layer(packed=packed)
    torch.library.opcheck(layer_fwd, (*call, True, backend, fresh))
    with torch.no_grad():
        y, h_n, c_n, c, gates = layer_fwd(*call, True, backend, fresh)
        plain = layer_fwd(*call, False, backend, fresh)
    assert torch.equal(plain[0], y)
    x, sizes, h0, c0, weights = call
    given = x.detach(), sizes, h0.detach(), c0.detach(), [w.detach() for w in weights]
    doutputs = [torch.randn_like(t) for t in (y, h_n, c_n)]
    torch.library.opcheck(layer_bwd, (*doutputs, *given, y, c, gates, True, True, backend, fresh))


@pytest.mark.parametrize("backend", MASKS)
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck_of_the_op(packed: bool, backend: str) -> None:
    x, sizes, h0, c0, weights, fresh = layer(packed=packed)

    def run(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return layer_fwd(x, sizes, h0, c0, list(weights), True, backend, fresh)[:3]

    assert gradcheck(run, (x, h0, c0, *weights), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, (x, h0, c0, *weights), fast_mode=True)


FRESH_ERRORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rows": (
        lambda fresh: fresh[:, 1:],
        r"fresh must be \[D, N\] = \[2, 13\] of torch.bool on cpu, got \[2, 12\]",
    ),
    "directions": (lambda fresh: fresh[:1], r"\[2, 13\].*got \[1, 13\]"),
    "dtype": (lambda fresh: fresh.byte(), r"torch.bool on cpu, got \[2, 13\] of torch.uint8"),
}


@pytest.mark.parametrize("wrong", FRESH_ERRORS)
def test_the_op_checks_fresh(wrong: str) -> None:
    *call, fresh = layer(grads=False)
    change, message = FRESH_ERRORS[wrong]
    with pytest.raises(RuntimeError, match=message):
        layer_fwd(*call, False, "eager", change(fresh))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("torch", *MASKS)])
def test_a_backend_without_masks_is_given_none(backend: str) -> None:
    *call, fresh = layer(grads=False)
    with pytest.raises(
        RuntimeError, match=f"fresh must be None for backend='{backend}', which takes no reset"
    ):
        layer_fwd(*call, False, backend, fresh)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_first_and_second_derivatives(options: dict[str, Any], backend: str) -> None:
    module, x, (h0, c0) = make(backend, **options)
    x, h0, c0 = (t[:, :3].contiguous().requires_grad_() for t in (x[:4], h0, c0))
    resets = RESETS[:4, [0, 1, 3]]

    def run(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        y, states = module(x, (h0, c0), resets)
        return y, *states

    assert gradcheck(run, (x, h0, c0), fast_mode=True)
    assert gradgradcheck(run, (x, h0, c0), fast_mode=True)


@pytest.mark.parametrize("backend", OPS)
def test_tangents_travel_forward(backend: str) -> None:
    module, x, hx = make(backend, bidirectional=True)
    v, step = torch.randn_like(x), 1e-6
    with torch.no_grad(), forward_ad.dual_level():
        y = module(forward_ad.make_dual(x, v), hx, RESETS)[0]
        numeric = module(x + step * v, hx, RESETS)[0] - module(x - step * v, hx, RESETS)[0]
        torch.testing.assert_close(
            forward_ad.unpack_dual(y).tangent, numeric / (2 * step), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("backend", OPS)
def test_vmap_over_inputs(backend: str) -> None:
    module, _, hx = make(backend, bidirectional=True)
    x = torch.randn(3, T, B, I, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return module(x, hx, RESETS)[0].pow(2).sum()

    torch.testing.assert_close(vmap(loss)(x), torch.stack([loss(one) for one in x]))
    torch.testing.assert_close(vmap(grad(loss))(x), torch.stack([grad(loss)(one) for one in x]))


def test_vmap_over_resets_takes_a_backend_with_masks() -> None:
    module, x, hx = make(bidirectional=True)
    resets = torch.stack([RESETS, RESETS.flip(0), torch.zeros_like(RESETS)])

    def loss(x: Tensor, resets: Tensor) -> Tensor:
        return module(x, hx, resets)[0].pow(2).sum()

    each = [loss(x, one) for one in resets]
    torch.testing.assert_close(vmap(loss, (None, 0))(x, resets), torch.stack(each))
    gradients = torch.stack([grad(loss)(x, one) for one in resets])
    torch.testing.assert_close(vmap(grad(loss), (None, 0))(x, resets), gradients)
    for backend in set(BACKENDS) - set(MASKS):
        module.backend = backend
        with pytest.raises(ValueError, match=rf"backend='{backend}' cannot serve.*no reset masks.*vmap"):
            vmap(loss, (None, 0))(x, resets)


@pytest.fixture
def forget() -> Iterator[None]:
    functional._resolve_cached.cache_clear()
    yield
    functional._resolve_cached.cache_clear()
    torch._dynamo.reset()


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("backend", ["auto", *MASKS])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compile_in_one_graph(compiler: str, backend: str) -> None:
    module, _, _ = make(backend, num_layers=2, bidirectional=True)
    names = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        names.extend(node.args[6] for node in graph.graph.nodes if "layer_fwd" in str(node.target))
        return torch._dynamo.lookup_backend(compiler)(graph, inputs)

    compiled = torch.compile(module, backend=count, fullgraph=True)
    for steps in (3, 4, 5):  # the second length makes the graph's sizes symbolic
        x = torch.randn(steps, B, I, dtype=torch.float64)
        results = []
        for call in (compiled, module):
            y, (h, c) = call(x, None, RESETS[:steps])
            y, (h, c) = call(x, (h, c), RESETS[:steps])
            loss = y.square().sum() + h.sum() + c.sum()
            results.append([y, h, c, *torch.autograd.grad(loss, list(module.parameters()))])
        torch.testing.assert_close(*results)
    assert names and set(names) == {"eager" if backend == "auto" else backend}


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in MASKS])
def test_compile_names_why_a_backend_cannot(backend: str) -> None:
    module, x, _ = make(backend)
    with pytest.raises(Exception, match=r"cannot serve this call: takes no reset masks.*torch.compile"):
        torch.compile(module, backend="eager", fullgraph=True)(x, None, RESETS)
    module.backend = "auto"
    torch.compile(module, backend="eager", fullgraph=True)(x, None, RESETS)


@pytest.mark.usefixtures("forget")
def test_export() -> None:
    module, x, _ = make()
    program = torch.export.export(module, (x, None, RESETS))
    other = RESETS.roll(1, 1)
    torch.testing.assert_close(program.module()(x, None, other), module(x, None, other))


def test_auto_chooses_as_without_resets() -> None:
    for changes in ({}, {"dtype": torch.float16}, {"P": 2}, {"packed": True}, {"device": "cuda"}):
        asked = {"device": "cpu", "dtype": torch.float32, "T": T, "B": B, "I": I, "H": H, "P": H} | changes
        assert resolve(Spec(**asked, resets=True), "auto") == resolve(Spec(**asked), "auto")
        assert resolve(Spec(**asked, resets=True, unreadable=True), "auto") == "eager"


@pytest.mark.parametrize("seed", range(20))
def test_rows_and_pieces_by_brute_force(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    B, longest = (int(n) for n in torch.randint(1, 7, (2,), generator=random))
    lengths = torch.randint(1, longest + 1, (B,), generator=random).sort(descending=True).values
    lengths[0] = longest
    dense = seed % 3 == 0
    if dense:
        lengths[:] = longest
    padded = torch.rand(longest, B, generator=random) < 0.4
    resets = pack_padded_sequence(padded, lengths)
    sizes = None if dense else resets.batch_sizes
    row = {(t, b): int(resets.batch_sizes[:t].sum()) + b for b in range(B) for t in range(int(lengths[b]))}

    fresh = fresh_rows(resets.data, sizes, B, 2)
    for (t, b), n in row.items():
        assert fresh[0, n] == padded[t, b]
        assert fresh[1, n] == (t + 1 < lengths[b] and padded[t + 1, b])
    assert torch.equal(fresh_rows(resets.data, sizes, B, 1), fresh[:1])

    pieces = cut(resets.data, sizes, B, 2)
    expected = []
    for b in range(B):
        bounds = sorted({0, *padded[: lengths[b], b].nonzero().flatten().tolist(), int(lengths[b])})
        expected += [[row[t, b] for t in range(*ends)] for ends in itertools.pairwise(bounds)]
    found = unpack_sequence(PackedSequence(pieces.rows, pieces.batch_sizes))
    rows = [one.tolist() for one in found]
    assert sorted(rows) == sorted(expected)
    assert torch.equal(pieces.rows[pieces.back], torch.arange(len(row)))
    for k, one in enumerate(rows):
        t, b = next(place for place, n in row.items() if n == one[0])
        starts, ends = t == 0, t + len(one) == lengths[b]
        assert pieces.begins[0][k] == (b if starts and not padded[0, b] else B)
        assert pieces.begins[1][k] == (b if ends else B)
        assert (pieces.ends[0][b] == k) == ends and (pieces.ends[1][b] == k) == starts
