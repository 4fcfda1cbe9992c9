"""`fusedlstm inspect` tells what a run is, and finds a damaged checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.commands.inspect import Inspect, about


def saved(run: Path, step: int, val: float, vocab: Vocab | None = None) -> None:
    settings = Settings(files=("a/b.txt",), rnn_size=7, epochs=2.0)
    metrics = [{"step": step, "train": math.log(2), "val": val}]
    tensors = {
        "model.lstm.w": torch.zeros(2, 3), "model.b": torch.zeros(5), "ema.b": torch.ones(5),
        "optimizer.0.x": torch.ones(9),
    }  # fmt: skip
    vocab = vocab or Vocab("bytes", "\n'a\x7f\xe9")
    checkpoint.save(run, Checkpoint(settings, vocab, "0123456789abcdef" * 4, step, 90.0, metrics, tensors))


def test_a_run_in_plain_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 100, 1.0)
    saved(tmp_path, 200, 2.0)
    Inspect(str(tmp_path), json=True)()
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(about(str(tmp_path))))
    assert found["settings"] == {"files": ["a/b.txt"], "rnn_size": 7, "epochs": 2.0}
    assert found["text"] == {"name": "a/b.txt", "sha256": "0123456789abcdef" * 4}
    assert found["vocab"] == {"kind": "bytes", "symbols": "\n'a\x7f\xe9"}
    assert found["parameters"] == {"lstm.w": [2, 3], "b": [5]}
    assert (found["parameters_total"], found["step"], found["seconds"]) == (11, 200, 90.0)
    assert found["last"] == {"step": 200, "train": math.log(2), "val": 2.0}
    assert found["best"] == {"step": 100, "train": math.log(2), "val": 1.0}
    folders = [str(folder) for folder in checkpoint.steps(tmp_path).values()]
    assert [c["folder"] for c in found["checkpoints"]] == folders
    for c in found["checkpoints"]:
        assert c["bytes"] == sum(file.stat().st_size for file in Path(c["folder"]).iterdir())
        assert c["damage"] is None
    assert about(folders[0])["step"] == 100


def test_a_run_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1500, 2 * math.log(2))
    Inspect(str(tmp_path))()
    shown = capsys.readouterr().out
    for words in (
        r"5 bytes: \n'a\x7f\xe9", "a/b.txt (sha256 0123456789abcdef…)", "1,500 steps, 1.5 minutes",
        "rnn_size", "step 1,500: train 1.000, val 2.000 bits/char",
        "11 parameters", "2 x 3", "step-00001500", "whole",
    ):  # fmt: skip
        assert words in shown, shown
    saved(tmp_path, 1500, 2 * math.log(2), Vocab("chars", "\n[é\u2028語"))
    Inspect(str(tmp_path))()
    assert r"5 chars: \n[é\u2028語" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_shown_and_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (100, 200):
        saved(tmp_path, step, 1.0)
    folder = checkpoint.steps(tmp_path)[200]
    (folder / checkpoint.TRAIN).write_bytes(b"")
    for as_json in (False, True):
        with pytest.raises(CharLMError, match=r"1 of 2 checkpoints are damaged: .*step-00000200"):
            Inspect(str(tmp_path), json=as_json)()
        shown = capsys.readouterr().out
        assert f"the checksum of {checkpoint.TRAIN} differs" in shown
    assert json.loads(shown)["step"] == 100
    (checkpoint.steps(tmp_path)[100] / checkpoint.RECORD).unlink()
    with pytest.raises(CharLMError, match=r"step-00000200 is damaged: .*; no other is whole"):
        Inspect(str(tmp_path))()


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(CharLMError, match="holds no checkpoint"):
        Inspect(str(tmp_path / "nowhere"))()
