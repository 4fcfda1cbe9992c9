"""Step sizes, clipping, gradients in parts and the average of the weights, against their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fusedlstm.charlm import optim
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.run import Run
from fusedlstm.charlm.settings import PRESETS, Settings

LINES = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(100, 0, -1))


def tiny(**changes: Any) -> Settings:
    values = {"rnn_size": 12, "batch_size": 4, "seq_length": 10, "steps": 12, "dtype": "float32"}
    return Settings(**(values | changes))  # type: ignore[arg-type]


def test_the_step_size_of_char_rnn_falls_after_ten_epochs() -> None:
    settings = Settings().but(PRESETS["charrnn"])
    rates = {
        epochs: optim.learning_rate(settings, 1000, 0.5, epochs) for epochs in (0, 9.99, 10, 10.5, 11, 12)
    }
    expected = {0: 0, 9.99: 0, 10: 1, 10.5: 1, 11: 2, 12: 3}
    assert rates == pytest.approx({e: 2e-3 * 0.97**n for e, n in expected.items()})


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.0), ("constant", 0.4), ("decay", 0.4)])
def test_a_warm_up_rises_in_a_line(schedule: Any, end: float) -> None:
    settings = tiny(warmup=4, schedule=schedule, learning_rate=0.4)
    rates = [optim.learning_rate(settings, step, 0.0, 0.0) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert optim.learning_rate(settings, 100, 1.0, 0.0) == pytest.approx(end)


def test_gradients_are_held_down_by_norm_or_by_value() -> None:
    model = nn.Linear(2, 1, bias=False)
    for clip, limit, expected in (
        ("norm", 1.0, [0.6, -0.8]),
        ("value", 3.5, [3.0, -3.5]),
        ("norm", 9.0, [3.0, -4.0]),
    ):
        model.weight.grad = torch.tensor([[3.0, -4.0]])
        assert optim.clip(model, tiny(clip=clip, grad_clip=limit)) == pytest.approx(5.0)
        assert model.weight.grad[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_a_batch_in_parts_is_the_batch(accumulate: int) -> None:
    whole = Run(tiny(), Corpus.from_bytes("x", LINES))
    parts = Run(tiny(accumulate=accumulate), Corpus.from_bytes("x", LINES))
    for _ in range(5):
        assert parts.advance() == pytest.approx(whole.advance(), rel=1e-5)
    assert whole.state and parts.state
    torch.testing.assert_close(parts.state, whole.state, rtol=1e-3, atol=1e-5)


def test_the_average_of_the_weights_is_what_writes() -> None:
    run = Run(tiny(ema=0.9), Corpus.from_bytes("x", LINES))
    expected = None
    for _ in range(4):
        run.advance()
        now = run.model.decoder.weight.detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    assert expected is not None
    torch.testing.assert_close(run.writer.decoder.weight, expected)
    assert not torch.allclose(run.writer.decoder.weight, run.model.decoder.weight, atol=1e-4)
    assert run.checkpoint().tensors["ema.decoder.weight"].equal(run.writer.decoder.weight)
    plain = Run(tiny(), Corpus.from_bytes("x", LINES))
    assert plain.writer is plain.model


def test_every_optimizer_is_the_one_that_it_is_called() -> None:
    model = nn.Linear(2, 2)
    for name, kind in (
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
    ):
        settings = replace(tiny(weight_decay=0.1, decay_rate=0.8), optimizer=name)  # type: ignore[arg-type]
        optimizer = optim.optimizer_for(model, settings)
        assert type(optimizer) is kind
        assert optimizer.defaults["weight_decay"] == 0.1
    assert optimizer.defaults["alpha"] == 0.8
