"""A run's weights predict the same in plain torch, and torch's the same in a run."""

from __future__ import annotations

import errno
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.commands.convert import Convert

H, L = 12, 2
SYMBOLS = "\n aetx"
V = len(SYMBOLS)
LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Plain(nn.Module):
    """A character model as people write it with torch alone."""

    def __init__(self, model: str, embedding: int = 0) -> None:
        super().__init__()
        self.rnn = LAYERS[model](embedding or V, H, L)
        self.decoder = nn.Linear(H, V)
        self.embedding = nn.Embedding(V, embedding) if embedding else None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) if self.embedding else F.one_hot(ids, V).float()
        return self.decoder(self.rnn(x)[0])


def run_of(folder: Path, **options: Any) -> CharLM:
    """Saves an untrained run, and returns the model that it would write with."""
    settings = Settings(rnn_size=H, num_layers=L, **options)
    models = [CharLM.from_settings(settings, V).eval() for _ in range(1 + ("ema" in options))]
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, model in zip(("model", "ema"), models, strict=False)
        for name, tensor in model.state_dict().items()
    }
    tensors["optimizer.0.step"] = torch.ones(())
    vocab = Vocab("chars", SYMBOLS)
    checkpoint.save(folder, Checkpoint(settings, vocab, "abc", 7, 1.0, [{"step": 7, "val": 1.0}], tensors))
    return models[-1]


def loaded(run: Path) -> CharLM:
    """The model of a run that was made here."""
    saved = checkpoint.load(run)
    model = CharLM.from_settings(saved.settings, len(saved.vocab)).eval()
    model.load_state_dict(saved.part("model."))
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, V, (20, 3))


@pytest.mark.parametrize("model", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    "options", [{}, {"embedding": 5}, {"embedding": H, "tied": True}, {"ema": 0.9}, {"weight_drop": 0.5}]
)
def test_plain_torch_predicts_the_same_and_back(
    tmp_path: Path, ids: Tensor, model: str, options: dict[str, Any]
) -> None:
    ours = run_of(tmp_path / "run", model=model, **options)
    out = tmp_path / "new" / "out.safetensors"
    Convert(str(tmp_path / "run"), str(out))()
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["vocab"] == {"kind": "chars", "symbols": SYMBOLS}
    assert (about["model"], about["vocab_size"], about["rnn_size"], about["num_layers"]) == (model, V, H, L)
    assert (about["step"], about["tied"]) == (7, "tied" in options)
    plain = Plain(about["model"], about["embedding"])
    plain.load_state_dict(safetensors.torch.load_file(out))
    torch.testing.assert_close(plain(ids), ours(ids)[0])

    Convert(str(out), str(tmp_path / "back"), to="charlm")()
    back = checkpoint.load(tmp_path / "back")
    assert (back.settings.model, back.settings.embedding) == (model, options.get("embedding", 0))
    assert back.settings.tied == ("tied" in options)
    assert back.vocab == Vocab("chars", SYMBOLS)
    torch.testing.assert_close(loaded(tmp_path / "back")(ids), ours(ids), rtol=0, atol=0)


@pytest.mark.parametrize("embedding", [0, 5])
def test_ids_of_another_order_are_put_in_ours(tmp_path: Path, ids: Tensor, embedding: int) -> None:
    theirs, plain = "text\n a"[1:], Plain("lstm", embedding)
    assert sorted(theirs) == list(SYMBOLS) and theirs != SYMBOLS
    safetensors.torch.save_file(plain.state_dict(), tmp_path / "in.safetensors")
    for symbols in (theirs, list(theirs)):
        record = {"vocab": {"kind": "chars", "symbols": symbols}}
        (tmp_path / "in.json").write_text(json.dumps(record))
        run = tmp_path / type(symbols).__name__
        Convert(str(tmp_path / "in.safetensors"), str(run), to="charlm")()
        text = [[theirs[i] for i in row] for row in ids.tolist()]
        our_ids = torch.tensor([[SYMBOLS.index(c) for c in row] for row in text])
        columns = [SYMBOLS.index(c) for c in theirs]
        torch.testing.assert_close(loaded(run)(our_ids)[0][..., columns], plain(ids))


def test_the_example_of_the_help_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = run_of(tmp_path / "run")
    Convert("run", "OUT.safetensors")()
    lines = textwrap.dedent(Convert.__doc__ or "").splitlines()
    code = [line for line in lines if line.startswith("        ")]
    assert 5 <= len(code) <= 10
    names: dict[str, Any] = {"json": json, "torch": torch, "safetensors": safetensors}
    exec(textwrap.dedent("\n".join(code)), names)
    torch.testing.assert_close(names["logits"], ours(names["ids"][:, None])[0][:, 0])


@pytest.mark.parametrize("to", ["torch", "charlm"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_halve_the_file_and_are_float32_again(tmp_path: Path, to: Any, dtype: Any) -> None:
    ours = run_of(tmp_path / "run")
    sizes = {}
    for name in ("float32", dtype):
        out = tmp_path / f"{name}{'.safetensors' if to == 'torch' else ''}"
        Convert(str(tmp_path / "run"), str(out), to=to, dtype=name)()
        weights = out if to == "torch" else next(out.rglob(checkpoint.MODEL))
        header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
        sizes[name] = weights.stat().st_size - header
    assert 2 * sizes[dtype] == sizes["float32"] == 4 * sum(p.numel() for p in ours.parameters())
    if to == "torch":
        Convert(str(out), str(tmp_path / "back"), to="charlm")()
        out = tmp_path / "back"
    for name, parameter in loaded(out).named_parameters():
        rounded = ours.state_dict()[name].to(getattr(torch, dtype)).float()
        torch.testing.assert_close(parameter.detach(), rounded, rtol=0, atol=0)


def test_a_weight_too_large_for_16_bits_is_named(tmp_path: Path) -> None:
    model = run_of(tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run")
    saved.tensors["model.decoder.bias"][1] = 7e4
    checkpoint.save(tmp_path / "run", saved)
    with pytest.raises(CharLMError, match=r"float16 must hold the weights, got decoder.bias up to 70000"):
        Convert(str(tmp_path / "run"), str(tmp_path / "out.safetensors"), dtype="float16")()
    Convert(str(tmp_path / "run"), str(tmp_path / "out.safetensors"), dtype="bfloat16")()
    assert model


def test_the_checkpoint_that_is_asked_for(tmp_path: Path) -> None:
    run_of(tmp_path / "run")
    later = checkpoint.load(tmp_path / "run")
    later.step, later.metrics = 8, [{"step": 8, "val": 2.0}]
    checkpoint.save(tmp_path / "run", later)
    for which, step in (("last", 8), ("best", 7), ("8", 8)):
        Convert(str(tmp_path / "run"), str(tmp_path / f"{which}.safetensors"), checkpoint=which)()
        assert json.loads((tmp_path / f"{which}.json").read_text())["step"] == step


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("call", range(1, 5))
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    run_of(tmp_path / "run")
    before, calls, fsync = written(tmp_path), iter(range(1, 100)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CharLMError, match=r"cannot write .*out.safetensors and .*: No space left on device"):
        Convert(str(tmp_path / "run"), str(tmp_path / "out.safetensors"))()
    assert written(tmp_path) == before


@pytest.mark.parametrize(
    ("source", "out", "to", "message"),
    [
        ("model.t7", "o.safetensors", "torch", r"got model.t7: a Torch7 serialisation \(char-rnn"),
        ("model.pt", "o", "charlm", r"got model.pt: a pickle, which could run any code and is not read"),
        ("run", "o.bin", "torch", "OUT must be a .safetensors file, got o.bin"),
        ("run", "there.safetensors", "torch", "OUT must be a new file, there.safetensors exists"),
        ("run", "described.safetensors", "torch", "OUT must be a new file, described.json exists"),
        ("run", "run", "charlm", "OUT must be a new folder, run holds a run"),
        ("zoneout", "o.safetensors", "torch", "a model with --zoneout 0.1 has no plain torch form"),
        ("nowhere", "o.safetensors", "torch", "nowhere holds no checkpoint"),
        ("nowhere.safetensors", "o", "charlm", "cannot read nowhere.safetensors: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str, to: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "run")
    run_of(tmp_path / "zoneout", zoneout=0.1)
    Path("there.safetensors").touch()
    Path("described.json").touch()
    before = written(tmp_path)
    with pytest.raises(CharLMError, match=message):
        Convert(source, out, to=to)()
    assert written(tmp_path) == before


GOOD = {"vocab": {"kind": "chars", "symbols": SYMBOLS}}


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "about", "message"),
    [
        (lambda t: without(t, "rnn.bias_hh_l1"), GOOD, r"in.safetensors lacks rnn.bias_hh_l1: see"),
        (lambda t: t | {"norm.weight": torch.ones(1)}, GOOD, r"must not have norm.weight"),
        (lambda t: without(t, "rnn.weight_hh_l0"), GOOD, r"must have .* got 'rnn.weight_hh_l0'"),
        (lambda t: without(t, "decoder.weight"), GOOD, r"must have .* got 'decoder.weight'"),
        (lambda t: t | {"rnn.weight_hh_l0": torch.ones(5 * H, H)}, GOOD, r"GRU or RNN, got \[60, 12\]"),
        (lambda t: t | {"rnn.weight_hh_l0": torch.ones(3)}, GOOD, r"must have rnn.weight_hh_l0 "),
        (lambda t: t | {"decoder.bias": torch.ones(9)}, GOOD, r"decoder.bias .* must be \[6\] .* got \[9\]"),
        (lambda t: t, {"vocab": {"kind": "chars", "symbols": "ab"}}, r"with 2 symbols, got"),
        (lambda t: t, {"vocab": {"kind": "chars", "symbols": "aa"}}, r"in.json must be like"),
        (lambda t: t, {"vocab": "abc"}, r"in.json must be like"),
        (lambda t: t, [], r"in.json must be like"),
    ],
)  # fmt: skip
def test_what_is_no_such_model_is_said(tmp_path: Path, change: Any, about: Any, message: str) -> None:
    safetensors.torch.save_file(change(Plain("lstm").state_dict()), tmp_path / "in.safetensors")
    (tmp_path / "in.json").write_text(json.dumps(about))
    with pytest.raises(CharLMError, match=message):
        Convert(str(tmp_path / "in.safetensors"), str(tmp_path / "out"), to="charlm")()
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_safetensors_is_said(tmp_path: Path) -> None:
    (tmp_path / "in.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CharLMError, match=r"is no .safetensors file"):
        Convert(str(tmp_path / "in.safetensors"), str(tmp_path / "out"), to="charlm")()
    safetensors.torch.save_file(Plain("lstm").state_dict(), tmp_path / "in.safetensors")
    with pytest.raises(CharLMError, match=r"cannot read .*in.json: No such file"):
        Convert(str(tmp_path / "in.safetensors"), str(tmp_path / "out"), to="charlm")()
