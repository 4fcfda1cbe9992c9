"""The trainer: it learns, it carries the state, and a resumed run is bit for bit one that never stopped."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm import run as run_module
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.report import Report, bits
from fusedlstm.charlm.run import Run
from fusedlstm.charlm.sample import load_model, write
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.train import train

FOX = "The quick brown fox jumps over the lazy dog.\n"
LINES = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(100, 0, -1))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "beer.txt"
    file.write_bytes(LINES)
    return file


def tiny(file: Path | str = "", **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "rnn_size": 12,
        "batch_size": 4,
        "seq_length": 10,
        "steps": 12,
        "sample_length": 20,
    }
    return Settings(files=(str(file),) if file else (), **(values | {"dtype": "float32"} | changes))


def test_it_learns_a_text_by_heart(tmp_path: Path) -> None:
    file = tmp_path / "fox.txt"
    file.write_text(FOX * 60)
    settings = tiny(
        file, rnn_size=32, seq_length=15, learning_rate=0.01, steps=400, out=str(tmp_path / "run")
    )
    last = checkpoint.load(train(settings)).metrics[-1]
    assert last["step"] == 400
    assert bits(last["train"]) < 0.1
    assert "".join(write(*load_model(tmp_path / "run"), "The quick", 81, 0.0)) == FOX * 2


def stop_after(steps: int) -> Any:
    """An answer to `stop` that ends a run after so many steps."""
    asked = iter(range(steps))
    return lambda: next(asked, None) is None


# 3,192 characters in 4 streams are 75 chunks of 10: 73 + 6 steps begin the text anew in between.
@pytest.mark.parametrize(
    ("changes", "n", "m"),
    [
        ({}, 5, 7),
        ({"dropout": 0.5, "num_layers": 2}, 5, 7),
        ({"optimizer": "rmsprop", "dropout": 0.3}, 1, 3),
        ({"dtype": "bfloat16", "dropout": 0.2}, 4, 4),
        ({"num_layers": 1}, 73, 6),
        ({"save_every": 3}, 6, 3),
        ({"model": "gru", "dropout": 0.3, "variational": True}, 4, 4),
        ({"optimizer": "adamw", "weight_decay": 0.1, "ema": 0.9, "accumulate": 3}, 5, 4),
        ({"weight_drop": 0.4, "embedding": 12, "tied": True}, 3, 3),
        ({"recurrent_dropout": 0.2, "zoneout": 0.1, "warmup": 6}, 3, 3),
        ({"dtype": "float16", "clip": "value", "grad_clip": 0.1}, 3, 3),
        ({"split": "charrnn", "schedule": "decay", "learning_rate_decay_after": 0.0}, 5, 3),
        ({"vocab": "chars"}, 4, 4),
    ],
)
def test_n_and_m_steps_are_n_plus_m(tmp_path: Path, text: Path, changes: Any, n: int, m: int) -> None:
    settings = tiny(text, **{"steps": n + m} | changes)
    at_once = checkpoint.load(train(replace(settings, out=str(tmp_path / "once"))))
    folder = train(replace(settings, out=str(tmp_path / "twice")), stop=stop_after(n))
    between = checkpoint.load(folder)
    assert between.step == n
    torch.rand(5)  # what else happens in the process does not matter
    train(between.settings, str(folder))
    in_two = checkpoint.load(folder)
    assert at_once.step == in_two.step == n + m
    torch.testing.assert_close(in_two.tensors, at_once.tensors, rtol=0, atol=0)
    assert in_two.metrics[-1]["val"] == at_once.metrics[-1]["val"]
    assert not torch.equal(between.tensors["model.decoder.weight"], in_two.tensors["model.decoder.weight"])


def test_the_state_is_carried_and_starts_anew_with_the_text() -> None:
    run = Run(tiny(learning_rate=1e-30), Corpus.from_bytes("x", LINES))
    per_pass = run.streams.n // 10
    with torch.no_grad():
        expected = run.model(run.streams.chunk(0, 30)[0])[1]
    for _ in range(3):
        run.advance()
    assert run.state is not None
    torch.testing.assert_close(run.state, expected)
    for _ in range(per_pass - 3):
        run.advance()
    first = run.advance()  # the first chunk again, from zeros: the loss it began with
    again = Run(tiny(learning_rate=1e-30), Corpus.from_bytes("x", LINES)).advance()
    assert first == pytest.approx(again, rel=1e-6)


def test_training_sees_every_chunk_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def record(model: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, *rest: Any) -> Any:
        seen.append(x)
        return 1.0, (torch.zeros(1), torch.zeros(1))

    monkeypatch.setattr("fusedlstm.charlm.run.train_step", record)
    run = Run(tiny(), Corpus.from_bytes("x", LINES))
    per_pass = run.streams.n // 10
    for _ in range(per_pass + 1):
        run.advance()
    ids = torch.cat(seen[:-1])
    assert torch.equal(ids, run.streams.chunk(0, len(ids))[0])
    assert torch.equal(seen[-1], seen[0])


def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=supported: answer)
        assert tiny(dtype="auto").autocast_dtype() == expected
        assert tiny(dtype="float32").autocast_dtype() == torch.float32
        assert tiny(dtype="bfloat16").autocast_dtype() == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert tiny(dtype="auto").autocast_dtype() == torch.float32


def test_the_learning_rate_falls_along_a_cosine() -> None:
    run = Run(tiny(steps=8, learning_rate=0.4), Corpus.from_bytes("x", LINES))
    rates = []
    for _ in range(8):
        run.advance()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_minutes_end_a_run_by_the_clock(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(np.arange(0, 10_000, 0.25))
    monkeypatch.setattr("fusedlstm.charlm.run.time.perf_counter", lambda: float(next(now)))
    folder = train(tiny(text, steps=None, minutes=0.1, out=str(tmp_path / "run")))
    first = checkpoint.load(folder)
    assert 6 <= first.seconds < 8
    assert first.step > 3
    train(replace(first.settings, minutes=0.2), str(folder))
    second = checkpoint.load(folder)
    assert 12 <= second.seconds < 14
    assert first.step < second.step <= 2 * first.step + 2  # not another 0.2 minutes


def test_a_pause_reads_a_part_of_the_validation_text_and_the_end_all(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int | None] = []

    def evaluate(model: Any, streams: Any, T: int, dtype: Any, steps: int | None) -> float:
        read.append(steps)
        return 1.0

    monkeypatch.setattr("fusedlstm.charlm.run.VAL_CHARS", 50)
    monkeypatch.setattr("fusedlstm.charlm.run.evaluate", evaluate)
    train(tiny(text, steps=8, save_every=3, out=str(tmp_path / "run")))
    assert read == [13, 13, None]  # 4 streams


def test_samples_validation_and_checkpoints_come_early_then_regularly(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny(text, rnn_size=2, steps=620, save_every=500, out=str(tmp_path / "run")))
    loaded = checkpoint.load(folder)
    assert [m["step"] for m in loaded.metrics] == [100, 200, 400, 500, 620]
    assert all(math.isfinite(m["train"]) and math.isfinite(m["val"]) for m in loaded.metrics)
    shown = capsys.readouterr().out
    assert shown.count("bits/char: train") == 5
    assert f"fusedlstm sample {folder}" in shown


def test_a_sample_follows_the_settings() -> None:
    run = Run(tiny(temperature=0.0, sample_length=30), Corpus.from_bytes("x", LINES))
    assert run.sample() == "".join(write(run.model, run.text.vocab, "", 30, 0.0))


def test_dropout_is_for_training_only() -> None:
    run = Run(tiny(dropout=0.5, num_layers=2), Corpus.from_bytes("x", LINES))
    x = run.streams.chunk(0, 10)[0]
    lstm, decoder = run.model.lstm, run.model.decoder
    with torch.no_grad():
        run.model.train()
        assert not torch.equal(lstm(x)[0], lstm(x)[0])  # between the layers
        lstm.eval()
        assert not torch.equal(run.model(x)[0], run.model(x)[0])  # before the decoder
        run.model.eval()
        torch.testing.assert_close(run.model(x)[0], decoder(lstm(x)[0]), rtol=0, atol=0)


def test_a_sample_does_not_change_the_training(tmp_path: Path, text: Path) -> None:
    often = train(tiny(text, dropout=0.5, save_every=2, out=str(tmp_path / "often")))
    never = train(tiny(text, dropout=0.5, sample_length=0, out=str(tmp_path / "never")))
    expected = checkpoint.load(never).tensors
    torch.testing.assert_close(checkpoint.load(often).tensors, expected, rtol=0, atol=0)


def test_a_short_text_shrinks_length_and_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "short.txt"
    file.write_bytes(b"hello")
    folder = train(Settings(files=(str(file),), rnn_size=4, steps=3, out=str(tmp_path / "run")))
    saved = checkpoint.load(folder)
    assert (saved.settings.batch_size, saved.settings.seq_length) == (1, 4)
    assert "val" not in saved.metrics[-1]
    assert "short is short: batch size" in capsys.readouterr().out
    train(replace(saved.settings, steps=5), str(folder))
    assert checkpoint.load(folder).step == 5


def test_one_character_over_and_over_is_learnt_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"aaaa")
    last = checkpoint.load(train(tiny(file, steps=2, out=str(tmp_path / "run")))).metrics[-1]
    assert last["train"] == 0


def test_what_may_not_change_on_resume_is_named(tmp_path: Path, text: Path) -> None:
    folder = train(tiny(text, steps=2, out=str(tmp_path / "run")))
    settings = checkpoint.load(folder).settings
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rnn_size": 13}, "--rnn-size must stay 12"),
        ({"seed": 9}, "--seed must stay 1"),
    ]
    for changes, flag in cases:
        with pytest.raises(CharLMError, match=f"{flag} with --resume, got"):
            train(replace(settings, **changes), str(folder))
    moved = tmp_path / "moved.txt"
    moved.write_bytes(LINES)
    train(replace(settings, files=(str(moved),), steps=3, learning_rate=0.1), str(folder))
    moved.write_bytes(LINES + b"!")
    with pytest.raises(CharLMError, match="the text must be that of the run, got another"):
        train(replace(settings, files=(str(moved),)), str(folder))


def test_a_run_is_never_written_over(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [train(tiny("beer.txt", steps=1)) for _ in range(3)]
    assert folders == [Path("runs", name) for name in ("beer", "beer-2", "beer-3")]
    assert checkpoint.load(folders[0]).settings.files == (str(text),)
    with pytest.raises(CharLMError, match="--out must be a new folder, runs/beer holds a run"):
        train(tiny(text, out="runs/beer"))


def test_a_run_that_diverges_goes_back_and_on_more_slowly(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = run_module.train_step, iter(range(1, 1000))

    def bad_at_8(*args: Any) -> Any:
        if next(calls) == 8:
            raise run_module.Diverged("the loss is nan, the gradient's norm 1")
        return step(*args)

    monkeypatch.setattr(run_module, "train_step", bad_at_8)
    folder = train(tiny(text, schedule="constant", save_every=5, out=str(tmp_path / "run")))
    saved = checkpoint.load(folder)
    assert saved.step == 12
    assert next(calls) == 12 + 3 + 1  # steps 6 and 7 were taken twice, the one that failed counts too
    assert saved.tensors["rate_scale"] == 0.5
    assert [m["learning_rate"] for m in saved.metrics] == pytest.approx([6e-3, 3e-3, 3e-3])
    assert (
        "the loss is nan, the gradient's norm 1: back to step 5, at 0.5 times the" in capsys.readouterr().out
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    train(replace(saved.settings, steps=14), str(folder))
    assert checkpoint.load(folder).tensors["rate_scale"] == 0.5


def test_a_run_that_cannot_but_diverge_says_so(tmp_path: Path, text: Path) -> None:
    settings = tiny(
        text, learning_rate=1e38, grad_clip=1e30, steps=500, save_every=3, out=str(tmp_path / "run")
    )
    with pytest.raises(CharLMError, match=r"the loss is .*, even at 0\.00"):
        train(settings)
    kept = checkpoint.load(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in kept.part("model.").values())


def test_samples_come_at_the_steps_that_were_asked_for(tmp_path: Path, text: Path) -> None:
    folder = train(tiny(text, steps=8, sample_at=(3, 5), out=str(tmp_path / "run")))
    names = sorted(file.name for file in (folder / "samples").iterdir())
    assert names == [f"step-0000000{step}.txt" for step in (3, 5, 8)]


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny(), Corpus.from_bytes("x", LINES))
    before = run.model.decoder.weight.detach().clone()
    monkeypatch.setattr(run_module.optim, "clip", lambda model, settings: math.inf)
    with pytest.raises(run_module.Diverged, match="the gradient's norm inf"):
        run.advance()
    assert torch.equal(run.model.decoder.weight, before)


def test_the_scale_of_a_float16_loss_is_kept() -> None:
    settings, text = tiny(dtype="float16"), Corpus.from_bytes("x", LINES)
    run = Run(settings, text)
    run.advance()
    changed = run.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 5}
    run.scaler.load_state_dict(changed)
    again = Run.resumed(run.checkpoint(), settings, text)
    again.advance()
    assert again.scaler.state_dict() == changed | {"_growth_tracker": 6}


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e4])
def test_a_bad_step_leaves_the_weights_alone(poison: float) -> None:
    run = Run(tiny(), Corpus.from_bytes("x", LINES))
    with torch.no_grad():
        run.model.decoder.bias[0] += poison  # the loss is then not finite, or far above log V
    before = {name: tensor.clone() for name, tensor in run.checkpoint().tensors.items()}
    with pytest.raises(run_module.Diverged, match="the loss is"):
        run.advance()
    after = run.checkpoint().tensors
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    assert run.step == 0


def test_the_terminal_gets_a_bar_and_a_file_gets_lines() -> None:
    shown = []
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)
        with Report(console) as report:
            for step in range(1, 4):
                report.update(step, step / 4, loss=math.log(4), chars=1000, seconds=0.5)
            report.pause({"step": 3, "train": math.log(2), "val": math.log(8)}, "[bold]a sample[/bold]")
        assert isinstance(console.file, io.StringIO)
        shown.append(console.file.getvalue())
    for text in shown:
        assert "1.386  2.000 bits/char  2,000 chars/s" in text
        assert "step 3, bits/char: train 1.000, val 3.000" in text
        assert "[bold]a sample[/bold]" in text
    assert "\x1b[" in shown[0]
    assert "\x1b[" not in shown[1]
    assert shown[1].count("chars/s") == 1  # a line now and then, not one a step
