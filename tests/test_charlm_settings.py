"""Settings are one thing in four forms: a dataclass, a TOML file, flags, and char-rnn's flags."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from fusedlstm.charlm.settings import FIXED, PRESETS, RULES, CharLMError, Settings
from fusedlstm.commands.train import parse

OTHER: dict[str, Any] = {
    "files": ("a.txt", "b é.txt"),
    "glob": "*.c",
    "data": "names",
    "vocab": "chars",
    "split": "80/10/10",
    "val_fraction": 0.25,
    "out": "runs/x",
    "model": "gru",
    "rnn_size": 7,
    "num_layers": 3,
    "embedding": 7,
    "tied": True,
    "dropout": 0.5,
    "variational": True,
    "recurrent_dropout": 0.1,
    "weight_drop": 0.2,
    "zoneout": 0.3,
    "init_range": 0.08,
    "seq_length": 9,
    "batch_size": 6,
    "accumulate": 2,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "schedule": "decay",
    "warmup": 10,
    "learning_rate_decay": 0.9,
    "learning_rate_decay_after": 3.0,
    "decay_rate": 0.99,
    "weight_decay": 0.01,
    "grad_clip": 5.0,
    "clip": "value",
    "ema": 0.999,
    "minutes": 3.0,
    "epochs": 2.5,
    "steps": 11,
    "dtype": "float16",
    "device": "cpu",
    "seed": -5,
    "save_every": 77,
    "sample_at": (1, 5, 10),
    "sample_length": 0,
    "temperature": 0.0,
    "tensorboard": True,
    "wandb": True,
}


def test_the_values_tried_here_are_of_all_settings_and_no_defaults() -> None:
    assert set(OTHER) == {field.name for field in fields(Settings)}
    assert all(OTHER[name] != value for name, value in asdict(Settings()).items())
    assert set(RULES) == set(OTHER)
    assert set(FIXED) < set(OTHER)


def test_a_toml_file_holds_all_of_them(tmp_path: Path) -> None:
    for settings in (Settings(), Settings(**OTHER)):
        file = tmp_path / "settings.toml"
        file.write_text(settings.to_toml(), "utf-8")
        assert Settings.from_toml(file) == settings


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_is_a_flag(name: str) -> None:
    value = OTHER[name]
    flag = f"--{name.replace('_', '-')}"
    words = [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else [value])]
    changed = {name: value} | ({"embedding": 256} if name == "tied" else {})
    words += ["--embedding", "256"] if name == "tied" else []
    command = parse(list(value) if name == "files" else words)
    assert asdict(command.settings) == asdict(Settings(**changed))


@pytest.mark.parametrize("name", OTHER)
def test_a_wrong_value_is_named_with_what_is_expected(name: str) -> None:
    hints = get_type_hints(Settings)[name]
    wrong: Any = "purple" if get_args(hints) and isinstance(OTHER[name], str) else -1
    wrong = {bool: 3, tuple: (-1,), int: 1.5 if name == "seed" else -1}.get(type(OTHER[name]), wrong)
    with pytest.raises(CharLMError, match=f"--{name.replace('_', '-')} must be .*, got"):
        Settings(**{name: wrong})


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(CharLMError, match="--embedding must be --rnn-size 256 with --tied, got 0"):
        Settings(tied=True)


def test_a_file_of_settings_may_be_wrong(tmp_path: Path) -> None:
    for text, message in (
        ("rnn_size = ", "cannot read the settings in"),
        ("rnn_sise = 3", r"settings \['rnn_sise'\] are not known"),
        ("rnn_size = 'x'", "--rnn-size must be a whole number, at least 1, got 'x'"),
        ("sample_at = 5", "--sample-at must be whole numbers, at least 1, got 5"),
    ):
        file = tmp_path / "settings.toml"
        file.write_text(text)
        with pytest.raises(CharLMError, match=message):
            Settings.from_toml(file)
    with pytest.raises(CharLMError, match="No such file"):
        Settings.from_toml(tmp_path / "none.toml")


def test_a_file_or_a_preset_comes_before_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("rnn_size = 7\nnum_layers = 4\n")
    settings = parse(["book.txt", "--config", str(file), "--num-layers", "3"]).settings
    assert (settings.rnn_size, settings.num_layers, settings.files) == (7, 3, ("book.txt",))
    settings = parse(["--preset", "charrnn", "--rnn-size", "512"]).settings
    assert settings.rnn_size == 512
    assert settings.grad_clip == PRESETS["charrnn"]["grad_clip"] == 5.0
    for args, message in (
        (["--preset", "nonsense"], "--preset must be one of charrnn, got 'nonsense'"),
        (["--preset", "charrnn", "--config", "x"], "give one of --config, --preset and --resume, got"),
    ):
        with pytest.raises(CharLMError, match=message):
            parse(args)


def test_the_flags_of_char_rnn_are_known() -> None:
    flags = {
        "data_dir": "data/tiny", "rnn_size": 64, "num_layers": 3, "model": "gru", "learning_rate": 0.01,
        "learning_rate_decay": 0.9, "learning_rate_decay_after": 5, "decay_rate": 0.9, "dropout": 0.5,
        "seq_length": 20, "batch_size": 10, "max_epochs": 7, "grad_clip": 2, "val_frac": 0.1, "seed": 9,
        "eval_val_every": 50, "checkpoint_dir": "cv",
    }  # fmt: skip
    command = parse(
        [word for name, value in flags.items() for word in (f"-{name}", str(value))] + ["--max-epochs=8"]
    )
    expected = Settings(
        files=("data/tiny",), rnn_size=64, num_layers=3, model="gru", learning_rate=0.01,
        learning_rate_decay=0.9, learning_rate_decay_after=5, decay_rate=0.9, dropout=0.5, seq_length=20,
        batch_size=10, epochs=8, grad_clip=2, val_fraction=0.1, seed=9, save_every=50, out="cv",
    )  # fmt: skip
    assert asdict(command.settings) == asdict(expected)
    assert parse(["rnn_size"]).settings.files == ("rnn_size",)  # a file of that name


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for found, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert Settings(device="auto").torch_device().type == expected
        assert Settings(device="cpu").torch_device().type == "cpu"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Settings(device="cuda").torch_device().type == "cuda"
    for name, message in (
        ("cuda:1", "--device cuda:1 is not there: torch finds 1 GPUs"),
        ("gpu", "--device must be auto, cpu or cuda, got 'gpu'"),
    ):
        with pytest.raises(CharLMError, match=message):
            Settings(device=name).torch_device()
