"""Activations against a step-by-step reference in float64; cells that are held stay where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fusedlstm.charlm import activations as module
from fusedlstm.charlm.activations import QUANTITIES, activations, bits_apart, clamped
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.settings import CharLMError

V, H, L, N = 7, 6, 3, 50
IDS = np.random.default_rng(0).integers(0, V, N).astype(np.uint8)


@pytest.fixture
def model() -> CharLM:
    return CharLM(V, H, L).double().eval()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def step_by_step(
    model: CharLM, ids: np.ndarray, held: tuple[str, int, int, float] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All quantities [N, L, H] and the log-probabilities after each character [N, V]; a cell may be held."""
    weights = [[w.detach().numpy() for w in layer] for layer in model.lstm.all_weights]
    W, b = (p.detach().numpy() for p in model.decoder.parameters())
    h, c = np.zeros((2, L, H))
    found: dict[str, list[np.ndarray]] = {name: [] for name in QUANTITIES}
    log_p = []
    if held and held[0] == "h":
        h[held[1], held[2]] = held[3]
    for k in ids:
        x, step = np.eye(V)[k], {name: np.empty((L, H)) for name in QUANTITIES}
        for layer, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights):
            i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h[layer] + b_hh, 4)
            gates = {"i": sigmoid(i), "f": sigmoid(f), "g": np.tanh(g), "o": sigmoid(o)}

            def hold(name: str, values: np.ndarray, layer: int = layer) -> None:
                if held and held[:2] == (name, layer):
                    values[held[2]] = held[3]

            for name in "ifgo":
                hold(name, gates[name])
            c[layer] = gates["f"] * c[layer] + gates["i"] * gates["g"]
            hold("c", c[layer])
            tanh_c = np.tanh(c[layer])
            hold("tanh_c", tanh_c)
            x = gates["o"] * tanh_c
            hold("h", x)
            h[layer] = x
            for name, values in ({"c": c[layer], "tanh_c": tanh_c, "h": x} | gates).items():
                step[name][layer] = values
        for name, values in step.items():
            found[name].append(values)
        logits = W @ x + b
        log_p.append(logits - np.log(np.exp(logits).sum()))
    return {name: np.array(values) for name, values in found.items()}, np.array(log_p)


@pytest.mark.parametrize("chunk", [1, 7, N, 1000])
def test_all_that_goes_on_is_the_reference(
    model: CharLM, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    made = activations(model, IDS, tuple(QUANTITIES), dtype="float64")
    expected, log_p = step_by_step(model, IDS)
    for name, values in made.values.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert math.isnan(made.bits[0])
    cost = -log_p[np.arange(N - 1), IDS[1:]] / math.log(2)
    np.testing.assert_allclose(made.bits[1:], cost, rtol=1e-6)
    order = np.argsort(-log_p, axis=1)[:, :5]
    np.testing.assert_array_equal(made.likeliest, order)
    np.testing.assert_allclose(made.probabilities, np.exp(np.take_along_axis(log_p, order, 1)), rtol=1e-6)
    h, c = made.state
    np.testing.assert_allclose(h[:, 0], expected["h"][-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(c[:, 0], expected["c"][-1], rtol=1e-9, atol=1e-12)


def test_a_state_goes_on_where_a_text_was_left(model: CharLM) -> None:
    whole = activations(model, IDS, ("c", "o"), dtype="float64")
    first = activations(model, IDS[:20], ("c", "o"), dtype="float64")
    kept = [t.clone() for t in first.state]
    second = activations(model, IDS[20:], ("c", "o"), dtype="float64", state=first.state)
    for name in ("c", "o"):
        joined = np.concatenate([first.values[name], second.values[name]])
        np.testing.assert_allclose(joined, whole.values[name], rtol=1e-12)
    assert all(torch.equal(*pair) for pair in zip(first.state, kept, strict=True))  # it is not written to


def test_chunks_read_apart_cost_what_they_do_in_the_text(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    made = activations(model, IDS, (), dtype="float64")
    assert made.before[0].shape == (L, 7, H)  # the last of them begins a chunk of 2
    apart = bits_apart(model, IDS, (made.before[0][:, :6], made.before[1][:, :6]))
    assert apart.shape == (6, 8)
    assert np.isnan(apart[:, 0]).all()
    np.testing.assert_allclose(apart[:, 1:], made.bits[:48].reshape(6, 8)[:, 1:], rtol=1e-6)


def test_only_what_is_asked_for_is_kept(model: CharLM) -> None:
    whole = activations(model.float(), IDS, ("h", "g"), dtype="float32")
    made = activations(model, IDS, ("g",), layers=(2, 0))
    assert set(made.values) == {"g"}
    assert made.layers == (2, 0)
    assert made.values["g"].shape == (N, 2, H)
    assert made.values["g"].dtype == np.float16
    np.testing.assert_array_equal(made.values["g"], whole.values["g"][:, [2, 0]].astype(np.float16))


def test_a_small_vocabulary_has_fewer_likeliest() -> None:
    made = activations(CharLM(3, H, 1).eval(), IDS % 3)
    assert made.likeliest.shape == made.probabilities.shape == (N, 3)
    np.testing.assert_allclose(made.probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("layer", range(L))
def test_a_held_cell_is_the_same_at_every_step(model: CharLM, quantity: str, layer: int) -> None:
    value, cell = 0.3, 4
    before = {name: t.clone() for name, t in model.state_dict().items()}
    zeros = torch.zeros(2, L, 1, H, dtype=torch.float64)
    held, state = clamped(model, (zeros[0], zeros[1]), layer, cell, quantity, value)
    made = activations(held, IDS, tuple(QUANTITIES), dtype="float64", state=state)
    expected, log_p = step_by_step(model, IDS, (quantity, layer, cell, value))
    np.testing.assert_allclose(made.values[quantity][:, layer, cell], value, rtol=1e-6)
    cost = -log_p[np.arange(N - 1), IDS[1:]] / math.log(2)
    np.testing.assert_allclose(made.bits[1:], cost, rtol=1e-6)
    others = np.arange(H) != cell
    for name, values in made.values.items():
        np.testing.assert_allclose(values[:, :, others], expected[name][:, :, others], rtol=1e-6, atol=1e-9)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not zeros.any()


def test_a_held_cell_does_not_drift_in_float32(model: CharLM) -> None:
    long = np.tile(IDS, 200)
    state = activations(model.float(), IDS).state
    held, state = clamped(model, state, 1, 2, "c", 1.7)
    made = activations(held, long, ("c",), dtype="float32", state=state)
    assert set(made.values["c"][:, 1, 2]) == {np.float32(1.7)}


def test_a_mean_that_rounds_to_one_can_be_held(model: CharLM) -> None:
    zeros = torch.zeros(L, 1, H, dtype=torch.float64)
    for quantity, value in [("tanh_c", 1.0), ("h", -1.0), ("i", 1.0), ("f", 0.0)]:
        held, state = clamped(model, (zeros, zeros), 0, 0, quantity, value)
        made = activations(held, IDS, (quantity,), dtype="float64", state=state)
        np.testing.assert_allclose(made.values[quantity][:, 0, 0], value, atol=1e-6)


def test_what_cannot_be_had_is_said(model: CharLM) -> None:
    with pytest.raises(CharLMError, match=r"keep must be some of tanh_c, c, h, i, f, g, o, got x$"):
        activations(model, IDS, ("c", "x"))
    with pytest.raises(CharLMError, match=r"layers must be from 0 to 2, got 3"):
        activations(model, IDS, layers=(0, 3))
    with pytest.raises(CharLMError, match="at least 1 character"):
        activations(model, IDS[:0])
