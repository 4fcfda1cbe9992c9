"""The loss of a text: read in chunks, in stretches side by side, and by a model that adapts to it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusedlstm.charlm import evaluate as module
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.evaluate import dynamic, evaluate, gradient_sizes, whole
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.report import bits
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.streams import Streams
from fusedlstm.commands.eval import Eval

V, H, L = 5, 8, 2
IDS = np.random.default_rng(0).integers(0, V, 401).astype(np.uint8)
FLOAT32 = torch.float32


@pytest.fixture
def model() -> CharLM:
    """With weights so large that what was read long ago still tells."""
    made = CharLM(V, H, L)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 2
    return made


def character_by_character(model: CharLM, ids: np.ndarray) -> float:
    """Mean loss of a text by the equations, in NumPy and float64."""
    weights = [[w.detach().double().numpy() for w in layer] for layer in model.lstm.all_weights]
    decoder, bias = (p.detach().double().numpy() for p in (model.decoder.weight, model.decoder.bias))
    h, c = np.zeros((L, H)), np.zeros((L, H))
    losses = []
    for now, after in pairwise(ids):
        x = np.eye(V)[now]
        for k, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights):
            i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h[k] + b_hh, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c[k] = f * c[k] + i * np.tanh(g)
            x = h[k] = o * np.tanh(c[k])
        logits = decoder @ x + bias
        losses.append(np.log(np.exp(logits).sum()) - logits[after])
    return float(np.mean(losses))


@pytest.mark.parametrize("T", [1, 7, 1000])
def test_one_stream_is_read_character_by_character(model: CharLM, T: int) -> None:
    loss = evaluate(model.train(), Streams(IDS, 1), T, FLOAT32)
    assert loss == pytest.approx(character_by_character(model, IDS), rel=1e-6)
    assert not model.training


def test_streams_start_cold_and_may_end_early(model: CharLM) -> None:
    parts = [character_by_character(model, IDS[start : start + 101]) for start in range(0, 400, 100)]
    assert evaluate(model, Streams(IDS, 4), 30, FLOAT32) == pytest.approx(np.mean(parts), rel=1e-6)
    parts = [character_by_character(model, IDS[start : start + 61]) for start in range(0, 400, 100)]
    assert evaluate(model, Streams(IDS, 4), 30, FLOAT32, steps=50) == pytest.approx(np.mean(parts), rel=1e-6)


def test_bfloat16_agrees_roughly(model: CharLM) -> None:
    exact, rough = (evaluate(model, Streams(IDS, 4), 20, dtype) for dtype in (FLOAT32, torch.bfloat16))
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact


@pytest.mark.parametrize("n", [2, 3, 257, 401])
def test_a_whole_text_in_one_stretch_is_exact(model: CharLM, n: int) -> None:
    loss = whole(model.train(), IDS[:n], 1, FLOAT32)
    assert loss == pytest.approx(character_by_character(model, IDS[:n]), rel=1e-6)
    assert not model.training


@pytest.mark.parametrize("B", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [398, 401])
def test_stretches_that_start_early_are_one(monkeypatch: pytest.MonkeyPatch, B: int, n: int) -> None:
    model = CharLM(V, H, L)
    expected = character_by_character(model, IDS[:n])
    monkeypatch.setattr(module, "CHUNK", 9)
    monkeypatch.setattr(module, "WARM", 1)
    cold = whole(model, IDS[:n], B, FLOAT32)
    monkeypatch.setattr(module, "WARM", 60)
    warm = whole(model, IDS[:n], B, FLOAT32)
    assert warm == pytest.approx(expected, rel=3e-6)
    assert abs(cold - expected) > 30 * abs(warm - expected)


@pytest.mark.parametrize("B", [1, 2, 5, 7, 30])
@pytest.mark.parametrize("warm", [1, 3, 20])
@pytest.mark.parametrize("n", [2, 9, 40, 61, 62, 401])
def test_each_character_counts_once(monkeypatch: pytest.MonkeyPatch, B: int, warm: int, n: int) -> None:
    monkeypatch.setattr(module, "WARM", warm)
    monkeypatch.setattr(module, "CHUNK", 7)
    model = CharLM(V, H, L)
    with torch.no_grad():  # what it predicts is always the same
        model.decoder.weight.zero_()
    expected = -model.decoder.bias.log_softmax(0)[torch.from_numpy(IDS[1:n]).long()].mean().item()
    assert whole(model, IDS[:n], B, FLOAT32) == pytest.approx(expected, rel=1e-6)


def test_short_texts_are_read_in_fewer_stretches(model: CharLM) -> None:
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    for n, expected in [(401, 1), (2999, 1), (3001, 2), (6000, 4), (20_000, 8)]:
        whole(model, np.resize(IDS, n), 8, FLOAT32)
        assert set(rows) == {expected}
        rows.clear()


def test_texts_that_are_apart_are_read_apart(model: CharLM) -> None:
    texts = IDS[:400].reshape(4, 100)
    expected = np.mean([character_by_character(model, text) for text in texts])
    assert whole(model, texts, 32, FLOAT32) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(params=["lstm", "gru", "rnn"])
def any_model(request: pytest.FixtureRequest) -> CharLM:
    return CharLM(V, H, L, model=request.param, dropout=0.5)


def ones(model: CharLM, size: float = 1.0) -> dict[str, Tensor]:
    return {name: torch.full_like(p, size) for name, p in model.named_parameters()}


def copied(model: CharLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_without_steps_dynamic_is_static(any_model: CharLM) -> None:
    before, streams = copied(any_model), Streams(IDS, 1)
    expected = evaluate(any_model, streams, 20, FLOAT32)
    sizes = ones(any_model)
    assert dynamic(any_model, streams, 20, FLOAT32, 0.0, 0.5, sizes) == pytest.approx(expected, rel=1e-6)
    # Steps that are taken back whole before the next chunk.
    assert dynamic(any_model, streams, 20, FLOAT32, 0.3, 1.0, sizes) == pytest.approx(expected, rel=1e-5)
    adapted = dynamic(any_model, streams, 20, FLOAT32, 3.0, 0.0, sizes)
    assert adapted != pytest.approx(expected, rel=1e-2)
    torch.testing.assert_close(copied(any_model), before, rtol=0, atol=0)


def test_dynamic_steps_by_its_equation(any_model: CharLM) -> None:
    rate, decay, T = 0.05, 0.9, 15  # of large sizes all comes back
    sizes = {name: torch.rand_like(p) for name, p in any_model.named_parameters()}
    mean = float(sum(s.sum() for s in sizes.values()) / sum(s.numel() for s in sizes.values()))
    twin = CharLM(V, H, L, model=any_model.kind).eval()
    twin.load_state_dict(any_model.state_dict())
    state, losses = None, []
    for start in range(0, 60, T):
        x, y = (torch.from_numpy(IDS[at : at + T]).long()[:, None] for at in (start, start + 1))
        logits, state = twin(x, state)
        state = tuple(s.detach() for s in state)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        losses.append(loss.item())
        twin.zero_grad()
        loss.backward()
        with torch.no_grad():
            for (name, p), trained in zip(twin.named_parameters(), any_model.parameters(), strict=True):
                stepped = p - rate * p.grad / (sizes[name] + 0.1 * mean)
                pull = torch.minimum(decay * sizes[name] / mean, torch.ones_like(p))
                p.copy_(stepped + pull * (trained - stepped))
    found = dynamic(any_model, Streams(IDS[:61], 1), T, FLOAT32, rate, decay, sizes)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_dynamic_learns_what_comes_again_and_leaves_no_trace(any_model: CharLM) -> None:
    before, streams = copied(any_model), Streams(np.resize(np.array([0, 0, 3], np.uint8), 801), 1)
    expected = evaluate(any_model, streams, 20, FLOAT32)
    assert dynamic(any_model, streams, 20, FLOAT32, 1.0, 0.0, ones(any_model)) < 0.7 * expected
    torch.testing.assert_close(copied(any_model), before, rtol=0, atol=0)
    assert all(p.grad is None and p.requires_grad for p in any_model.parameters())


def test_the_weights_come_back_when_reading_fails(model: CharLM) -> None:
    class Failing:
        def chunks(self, T: int, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
            yield Streams(IDS, 1).chunk(0, T)
            raise OSError("the disk is gone")

    before = copied(model)
    with pytest.raises(OSError, match="the disk is gone"):
        dynamic(model, Failing(), 20, FLOAT32, 0.1, 0.0, ones(model))  # type: ignore[arg-type]
    torch.testing.assert_close(copied(model), before, rtol=0, atol=0)


def test_sizes_are_the_root_mean_square_over_chunks(model: CharLM) -> None:
    streams = Streams(IDS, 2)
    model.eval()
    state, squares = None, []
    for start in (0, 10, 20):
        x, y = streams.chunk(start, 10)
        logits, state = model(x, state)
        state = tuple(s.detach() for s in state)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        squares.append([g.square() for g in torch.autograd.grad(loss, list(model.parameters()))])
    expected = [torch.stack(of_one).mean(0).sqrt() for of_one in zip(*squares, strict=True)]
    found = gradient_sizes(model.train(), streams, 10, FLOAT32, 30)
    torch.testing.assert_close(list(found.values()), expected, rtol=1e-4, atol=1e-7)


TEXT = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(100, 0, -1))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run of an untrained model on a file, and what its checkpoint says."""
    file = tmp_path / "beer.txt"
    file.write_bytes(TEXT)
    text = Corpus.from_bytes("beer", TEXT)
    made = CharLM(len(text.vocab), H, L)
    saved = SimpleNamespace(settings=Settings(files=(str(file),), split="80/15/5"), text_sha256=text.sha256)
    monkeypatch.setattr("fusedlstm.commands.eval.load_model", lambda run: (made, text.vocab))
    monkeypatch.setattr("fusedlstm.commands.eval.checkpoint.load", lambda run: saved)
    monkeypatch.setattr("fusedlstm.commands.eval.LEARNT", 400)
    return SimpleNamespace(model=made, file=file, text=text, saved=saved)


def printed(capsys: pytest.CaptureFixture[str], **flags: Any) -> list[dict[str, Any]]:
    Eval("RUN", json=True, **flags)()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_eval_tells_the_loss_of_the_parts_of_the_text(
    run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    n = len(TEXT)
    parts = {"val": (0.8, 0.95), "train": (0, 0.8), "test": (0.95, 1), "all": (0, 1)}
    for name, (first, last) in parts.items():
        ids = run.text.ids[int(first * n) : int(last * n)]
        (found,) = printed(capsys, split=name)
        loss = evaluate(run.model, Streams(ids, 1), 50, FLOAT32)
        assert found["nats_per_char"] == pytest.approx(loss, rel=1e-5)
        assert found["bits_per_char"] == pytest.approx(loss / math.log(2), rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert (found["text"], found["characters"]) == (f"{name} of RUN", len(ids) - 1)
        assert found["seconds"] > 0
    (val,) = printed(capsys)
    Eval("RUN")()
    line = capsys.readouterr().out
    nats = val["nats_per_char"]
    assert line.startswith(f"val of RUN: {nats:.4f} nats/char, {bits(nats):.4f} bits/char, perplexity ")


def test_eval_reads_streams_of_a_split_apart(
    run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    run.saved.settings = Settings(
        files=run.saved.settings.files, split="charrnn", val_fraction=0.3, batch_size=4, seq_length=10
    )
    ids = run.text.split(run.saved.settings).val
    assert len(ids) == 4
    (found,) = printed(capsys)
    assert found["characters"] == ids.size - 4
    assert found["nats_per_char"] == pytest.approx(
        evaluate(run.model, Streams(ids, 4), 50, FLOAT32), rel=1e-5
    )
    (adapted,) = printed(capsys, dynamic=True, dynamic_rate=0.0)
    assert adapted["nats_per_char"] == pytest.approx(found["nats_per_char"], rel=1e-5)


def test_eval_reads_each_file_by_itself(
    run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for file, text in zip(files, [b"10 bottles", b"beer on the wall"], strict=True):
        file.write_bytes(text)
    found = printed(capsys, files=tuple(map(str, files)))
    assert [(f["text"], f["characters"]) for f in found] == [(str(files[0]), 9), (str(files[1]), 15)]
    for one, file in zip(found, files, strict=True):
        ids = run.text.vocab.encode(file.read_bytes())
        assert one["nats_per_char"] == pytest.approx(
            evaluate(run.model, Streams(ids, 1), 50, FLOAT32), rel=1e-5
        )


def test_eval_says_what_does_not_serve(
    run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd, short = tmp_path / "odd.txt", tmp_path / "short.txt"
    odd.write_bytes(b"beer ~ beer")
    short.write_bytes(b"b")
    with pytest.raises(CharLMError, match="got others: '~'"):
        printed(capsys, files=(str(odd),))
    assert printed(capsys, files=(str(odd),), unknown="skip")[0]["characters"] == 9
    assert printed(capsys, files=(str(odd),), unknown="replace")[0]["characters"] == 10
    with pytest.raises(
        CharLMError, match=r"short\.txt must have at least 2 characters to evaluate on, got 1"
    ):
        printed(capsys, files=(str(short),))
    with pytest.raises(CharLMError, match=r"cannot read .*none\.txt: No such file"):
        printed(capsys, files=(str(tmp_path / "none.txt"),))
    for flag in ("streams", "dynamic_rate", "dynamic_decay"):
        with pytest.raises(CharLMError, match=f"--{flag.replace('_', '-')} must be .*, got -1"):
            Eval("RUN", **{flag: -1})
    run.file.write_bytes(TEXT + b"!")
    with pytest.raises(CharLMError, match="the text of RUN must be what it was, got another"):
        printed(capsys)


def test_eval_adapts_to_what_it_reads(run: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    before = copied(run.model)
    (static,) = printed(capsys)
    (adapted,) = printed(capsys, dynamic=True, dynamic_rate=0.01)
    assert adapted["nats_per_char"] < 0.9 * static["nats_per_char"]
    assert adapted["characters"] == static["characters"]
    torch.testing.assert_close(copied(run.model), before, rtol=0, atol=0)
