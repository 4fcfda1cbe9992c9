"""The network: each kind of layer against torch's own, and each regulariser against its equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.charlm import regularised
from fusedlstm.charlm.model import CharLM, parameters_of
from fusedlstm.charlm.regularised import Regularisers
from fusedlstm.charlm.settings import CharLMError, Settings

V, H, L, T, B = 5, 8, 2, 7, 3
TORCHS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
MASKS: dict[str, dict[str, Any]] = {
    "variational": {"dropout": 0.4, "variational": True},
    "weight_drop": {"weight_drop": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.4},
}
ALL = {name: value for masks in MASKS.values() for name, value in masks.items()}
INPUTS: dict[str, dict[str, Any]] = {
    "one-hot": {},
    "embedding": {"embedding": 3},
    "tied": {"embedding": H, "tied": True},
}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.4},
    "init_range": {"init_range": 0.6},
    **MASKS,
    "all": ALL,
}
CASES = [
    (kind, name)
    for name, options in (OPTIONS | INPUTS).items()
    for kind in TORCHS
    if kind == "lstm" or not {"recurrent_dropout", "zoneout"} & set(options)
]


def exact(**options: Any) -> CharLM:
    return CharLM(V, H, L, **options).double()


def inputs() -> Tensor:
    return torch.randint(V, (T, B))


def first_state(model: CharLM) -> tuple[Tensor, ...]:
    return tuple(torch.randn(L, B, H).double() for _ in range(2 if model.kind == "lstm" else 1))


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((weight * output).sum(), list(model.parameters())))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks that dropout and zoneout draw, in their order."""
    masks: list[Tensor] = []
    dropout, rand_like = F.dropout, torch.rand_like

    def recorded_dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        mask = dropout(torch.ones_like(x), p, training)
        if p and training:
            masks.append(mask.detach())
        return x * mask

    def recorded_rand(x: Tensor) -> Tensor:
        masks.append(rand_like(x))
        return masks[-1]

    monkeypatch.setattr(regularised.F, "dropout", recorded_dropout)
    monkeypatch.setattr(regularised.torch, "rand_like", recorded_rand)
    return masks


def by_hand(
    model: CharLM, ids: Tensor, state: tuple[Tensor, ...], masks: list[Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The LSTM written out, with the masks that were drawn (None: eval mode); logits, h, c."""
    how, draws = model.how, iter(masks or [])

    def mask(share: float) -> Tensor | float:
        return next(draws) if share and masks is not None else 1.0

    x = F.one_hot(ids, V).double()
    ends = []
    for layer, (w_ih, w_hh, b_ih, b_hh) in enumerate(model.lstm.all_weights):
        h, c = (s[layer] for s in state)
        kept_weights, kept_h, y = mask(how.weight_drop), mask(how.recurrent_dropout), []
        for row in x:
            gates = row @ w_ih.T + b_ih + (kept_h * h) @ (kept_weights * w_hh).T + b_hh
            i, f, g, o = gates.chunk(4, 1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new_h = o.sigmoid() * new_c.tanh()
            if how.zoneout and masks is None:
                new_h = how.zoneout * h + (1 - how.zoneout) * new_h
                new_c = how.zoneout * c + (1 - how.zoneout) * new_c
            elif how.leave_the_kernels(True) and masks is not None:
                stay_h, stay_c = (next(draws) < how.zoneout).double(), (next(draws) < how.zoneout).double()
                new_h, new_c = stay_h * h + (1 - stay_h) * new_h, stay_c * c + (1 - stay_c) * new_c
            h, c = new_h, new_c
            y.append(h)
        x = torch.stack(y) * mask(how.dropout)  # after the last layer it is the decoder's
        ends.append((h, c))
    assert next(draws, None) is None
    h, c = (torch.stack(s) for s in zip(*ends, strict=True))
    return x @ model.decoder.weight.T + model.decoder.bias, h, c


@pytest.mark.parametrize("kind", TORCHS)
@pytest.mark.parametrize("read", INPUTS)
def test_the_model_is_torchs_layers_and_a_linear_map(kind: str, read: str) -> None:
    model, theirs = exact(model=kind, **INPUTS[read]), TORCHS[kind](INPUTS[read].get("embedding", V), H, L)
    theirs.double().load_state_dict(model.layers.state_dict())
    ids, state = inputs(), first_state(model)
    table = {
        "one-hot": torch.eye(V).double(),
        "embedding": getattr(model.embedding, "weight", None),
        "tied": model.decoder.weight,
    }[read]
    y, end = theirs(table[ids], state if kind == "lstm" else state[0])
    expected = y @ model.decoder.weight.T + model.decoder.bias
    logits, our_end = model(ids, state)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(our_end, end if kind == "lstm" else (end,), rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(logits.square().sum(), list(model.layers.parameters()))
    expected_gradients = torch.autograd.grad(
        expected.square().sum(), theirs.all_weights[0] + theirs.all_weights[1]
    )
    torch.testing.assert_close(ours, expected_gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_in_eval_mode_the_state_carries_on_and_nothing_is_drawn(kind: str, name: str) -> None:
    options = (OPTIONS | INPUTS)[name]
    model, ids = exact(model=kind, **options).eval(), inputs()
    at_once, end = model(ids)
    first, state = model(ids[:3])
    second, state = model(ids[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), at_once, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-10, atol=1e-12)
    if "zoneout" not in options:
        plain = exact(model=kind, **INPUTS.get(name, {})).eval()
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(at_once, plain(ids)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [*MASKS.values(), ALL], ids=[*MASKS, "all"])
def test_masks_act_where_the_equations_say(drawn: list[Tensor], options: dict[str, Any]) -> None:
    model, ids = exact(**options), inputs()
    state = first_state(model)
    logits, end = model(ids, state)
    assert len(drawn) > 0
    expected, *expected_end = by_hand(model, ids, state, drawn)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(list(end), expected_end, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(model, logits), gradients(model, expected), rtol=1e-9, atol=1e-11)


def test_in_eval_mode_zoneout_is_its_expectation() -> None:
    model, ids = exact(**ALL).eval(), inputs()
    state = first_state(model)
    logits, end = model(ids, state)
    expected, *expected_end = by_hand(model, ids, state, None)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(list(end), expected_end, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["gru", "rnn"])
def test_torchs_layers_take_the_masks_too(drawn: list[Tensor], kind: str) -> None:
    """The same layers one by one in torch, with the masks that were drawn."""
    model = exact(model=kind, dropout=0.4, variational=True, weight_drop=0.3)
    ids, (h0,) = inputs(), first_state(model)
    logits, (h_n,) = model(ids, (h0,))
    assert len(drawn) == 4
    x = torch.eye(V).double()[ids]
    for layer, weights in enumerate(model.layers.all_weights):
        one = TORCHS[kind](x.shape[2], H).double()
        with torch.no_grad():
            for parameter, weight in zip(one.all_weights[0], weights, strict=True):
                parameter.copy_(weight)
            one.weight_hh_l0 *= drawn[2 * layer]
        x, h = one(x, h0[layer : layer + 1])
        torch.testing.assert_close(h_n[layer : layer + 1], h, rtol=1e-10, atol=1e-12)
        x = x * drawn[2 * layer + 1]
    torch.testing.assert_close(logits, model.decoder(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_keeps_the_mean_and_variational_keeps_its_mask(variational: bool) -> None:
    how, share = Regularisers(dropout=0.3, variational=variational), 0.3
    y = how.drop(torch.ones(50, 40, 60), training=True)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / (1 - share))]
    draws = y.numel() / (50 if variational else 1)
    assert (y == 0).double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(0.21 / draws))
    assert torch.equal(y, y[:1].expand_as(y)) == variational
    assert not torch.equal(y[:, 0], y[:, 1])
    assert not torch.equal(y, how.drop(torch.ones(50, 40, 60), training=True))
    assert torch.equal(how.drop(y, training=False), y)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_zoneout_keeps_that_share_of_the_states(share: float) -> None:
    old, new = torch.zeros(200, 200), torch.ones(200, 200)
    drawn = regularised._zoned(old, new, share, training=True)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert (drawn == 0).double().mean().item() == pytest.approx(share, abs=0.01)
    torch.testing.assert_close(regularised._zoned(old, new, share, training=False), (1 - share) * new)


def test_dropped_weights_get_no_gradient_and_are_others_each_time(drawn: list[Tensor]) -> None:
    model, ids = exact(weight_drop=0.5), inputs()
    for _ in range(2):
        model.zero_grad()
        model(ids)[0].square().sum().backward()
    masks = drawn[:2], drawn[2:]
    for layer, (_, w_hh, _, _) in enumerate(model.lstm.all_weights):
        assert torch.equal(w_hh.grad == 0, masks[1][layer] == 0)
        assert not torch.equal(masks[0][layer], masks[1][layer])
        assert (masks[1][layer] == 0).double().mean().item() == pytest.approx(0.5, abs=0.15)


def test_tied_weights_are_one_tensor_with_both_gradients() -> None:
    tied, apart = exact(embedding=H, tied=True), exact(embedding=H)
    values = tied.state_dict()
    apart.load_state_dict(values | {"embedding.weight": values["decoder.weight"]})
    ids = inputs()
    for model in (tied, apart):
        model(ids)[0].square().sum().backward()
    assert apart.embedding is not None
    both = apart.embedding.weight.grad + apart.decoder.weight.grad
    torch.testing.assert_close(tied.decoder.weight.grad, both, rtol=1e-10, atol=1e-12)
    assert parameters_of(apart) - parameters_of(tied) == V * H
    assert set(safetensors.torch.load(safetensors.torch.save(values))) == set(
        values
    )  # refuses shared tensors


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_option_learns(kind: str, name: str, dtype: torch.dtype) -> None:
    options = (OPTIONS | INPUTS)[name]
    gentle = {flag: share / 4 if type(share) is float else share for flag, share in options.items()}
    model = CharLM(V, H, L, model=kind, **gentle)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ids = torch.tensor([0, 1, 2, 3, 4, 1, 3, 2, 0])[:, None].expand(-1, 2)

    def loss(state: Any) -> tuple[Tensor, Any]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits, state = model(ids[:-1], state)
        return F.cross_entropy(logits.float().flatten(0, 1), ids[1:].flatten()), state

    before, state = loss(None)[0].item(), None
    for _ in range(20):
        nats, state = loss(state)
        state = tuple(s.detach() for s in state)
        optimizer.zero_grad()
        nats.backward()
        optimizer.step()
    model.eval()
    assert loss(state)[0].item() < 0.7 * before


def test_without_masks_the_layers_run_in_one_call_over_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    model, ids, seen = CharLM(V, H, L, dropout=0.5), inputs(), []
    monkeypatch.setattr("fusedlstm.charlm.model.run", never)
    model.lstm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids)
    assert len(seen) == 1
    assert seen[0] is ids
    CharLM(V, H, L, **ALL | {"zoneout": 0.0}).eval()(ids)
    with pytest.raises(AssertionError):
        CharLM(V, H, L, zoneout=0.1).eval()(ids)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (MASKS["variational"] | MASKS["weight_drop"], 0),
        (MASKS["recurrent_dropout"], T * L),
        (MASKS["zoneout"], T * L),
    ],
)
def test_only_what_must_leaves_the_kernels(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], steps: int
) -> None:
    calls, cell = [], regularised.lstm_cell

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return cell(*args, **kwargs)

    monkeypatch.setattr(regularised, "lstm_cell", counted)
    model = CharLM(V, H, L, **options)
    model(inputs())
    assert len(calls) == steps
    assert ("step by step" in model.describe()) == (steps > 0)
    assert model.plain == ("zoneout" not in options)


def test_autocast_does_not_round_what_goes_step_by_step() -> None:
    model, ids = CharLM(V, H, L, zoneout=0.3, embedding=4).eval(), inputs()
    exact_state = model(ids)[1]
    with torch.autocast("cpu", torch.bfloat16):
        state = model(ids)[1]
        rounded = tuple(s.bfloat16() for s in state)
        assert model(ids, rounded)[1][0].dtype == torch.float32  # a state from layers run in one call
    torch.testing.assert_close(state, exact_state, rtol=0, atol=0)


def test_the_layers_keep_their_backend_when_run_one_by_one() -> None:
    for masks in MASKS.values():
        model = CharLM(V, H, L, **masks)
        model.lstm.backend = "torch"
        with pytest.raises(ValueError, match="torch's LSTM takes no ids"):
            model(inputs())


def test_an_untrained_model_predicts_what_is_frequent() -> None:
    model, counts = CharLM(V, H, L), torch.tensor([0, 10, 1000, 50, 1])
    model.start_from(counts)
    logits = model.decoder(torch.zeros(1, H))
    torch.testing.assert_close(logits.softmax(1)[0], (counts + 1) / (counts.sum() + V))


@pytest.mark.parametrize("kind", TORCHS)
def test_forget_gates_start_open_and_the_input_is_heard(kind: str) -> None:
    for options in INPUTS.values():
        model = CharLM(V, H, L, model=kind, **options)
        if kind == "lstm":
            for _, _, b_ih, _ in model.lstm.all_weights:
                assert (b_ih[H : 2 * H] == 1).all()
                assert (b_ih[:H] != 1).all()
                assert (b_ih[2 * H :] != 1).all()
        wide = options.get("embedding") != 3
        expected = 1 / math.sqrt(3) if wide else 1 / math.sqrt(3 * H)
        assert model.layers.all_weights[0][0].std().item() == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", TORCHS)
def test_init_range_is_that_of_all_weights(kind: str) -> None:
    model = CharLM(V, 32, L, model=kind, embedding=16, init_range=0.08)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            opened = torch.zeros_like(parameter)
            opened[32:64] = float(kind == "lstm" and "bias_ih" in name)
            assert torch.equal(parameter.detach(), opened)
        else:
            assert parameter.abs().max().item() == pytest.approx(0.08, rel=0.1)
            assert parameter.abs().max() <= 0.08
            assert parameter.std().item() == pytest.approx(0.08 / math.sqrt(3), rel=0.15)


def test_settings_make_the_model() -> None:
    values: dict[str, Any] = {
        "rnn_size": 6,
        "num_layers": 3,
        "embedding": 6,
        "tied": True,
        "init_range": 0.01,
    }
    model = CharLM.from_settings(Settings(**values, **ALL), V)
    assert (model.lstm.input_size, model.lstm.hidden_size, model.lstm.num_layers) == (6, 6, 3)
    assert model.how == Regularisers(**ALL)
    assert model.tied
    assert model.decoder.weight.abs().max() <= 0.01
    gru = CharLM.from_settings(Settings(model="gru", rnn_size=6, embedding=4), V)
    assert isinstance(gru.layers, nn.GRU)
    assert gru.layers.input_size == 4
    assert gru.embedding is not None


def test_the_names_of_the_weights_are_these() -> None:
    lstm = [
        f"{name}_l{layer}" for layer in range(L) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    for kind in TORCHS:
        names = [f"{kind}.{name}" for name in lstm] + ["decoder.weight", "decoder.bias"]
        assert list(CharLM(V, H, L, model=kind, embedding=H, tied=True).state_dict()) == names
        assert list(CharLM(V, H, L, model=kind).state_dict()) == names
    assert "embedding.weight" in CharLM(V, H, L, embedding=H).state_dict()


@pytest.mark.parametrize("kind", ["gru", "rnn"])
@pytest.mark.parametrize("flag", ["recurrent_dropout", "zoneout"])
def test_what_a_kind_of_layer_lacks_is_named(kind: str, flag: str) -> None:
    words = f"--{flag.replace('_', '-')} must be 0 with --model {kind}, got 0.1: only lstm has it"
    with pytest.raises(CharLMError, match=words):
        CharLM(V, H, L, model=kind, **{flag: 0.1})


def test_a_model_tells_its_kind_and_size() -> None:
    words = CharLM(V, H, L, model="gru").describe()
    assert words == f"2 gru layers of 8, {3 * H * (V + 3 * H) + 4 * 3 * H + V * H + V:,} parameters"
