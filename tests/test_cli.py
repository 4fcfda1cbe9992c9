"""The command line: a small run, resumed, sampled, interrupted; one line for all that the user can mend."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.settings import Settings
from fusedlstm.cli import main
from fusedlstm.commands.train import stop_signals

TINY = ["--rnn-size", "8", "--batch-size", "4", "--seq-length", "8", "--sample-length", "30"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "beer.txt"
    file.write_text("".join(f"{n} bottles of bière 🍺 on the wall\n" for n in range(60)))
    return file


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "fusedlstm", *map(str, args)]


def run(*args: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, encoding="utf-8", timeout=60, **more)


def test_train_resume_sample(tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    done = run("train", text, "--out", out, "--steps", "20", *TINY)
    assert done.returncode == 0, done.stderr
    assert "beer: 2,270 bytes" in done.stdout
    assert "chars/s" in done.stdout
    assert "step 20, bits/char" in done.stdout
    assert checkpoint.load(out).step == 20
    assert "\x1b" not in done.stdout

    assert main(["train", "--resume", str(out), "--steps", "30", "--learning-rate", "0.01"]) == 0
    resumed = checkpoint.load(out)
    assert (resumed.step, resumed.settings.learning_rate, resumed.settings.rnn_size) == (30, 0.01, 8)

    done = run("sample", out, "--length", "40", "--seed", "3", "--prime", "5 bière")
    assert done.returncode == 0
    assert done.stdout.startswith("5 bière")
    assert 30 < len(done.stdout) <= 48
    capfd.readouterr()
    assert main(["sample", str(out), "--length", "40", "--seed", "3", "--prime", "5 bière"]) == 0
    assert capfd.readouterr().out == done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "missing.txt"], "cannot read missing.txt: No such file or directory"),
        (["train", "folder"], "folder"),
        (["train", "empty.txt"], "'empty' must have at least 2 bytes to learn from, got 0"),
        (["train", "one.txt"], "'one' must have at least 2 bytes to learn from, got 1"),
        (["train", "beer.txt", "--data", "names"], "give FILE or --data, not both"),
        (["train", "--data", "nonsense"], "--data must be a URL or one of stdlib,"),
        (["train", "--rnn-size", "0"], "--rnn-size must be a whole number, at least 1, got 0"),
        (["train", "--learning-rate", "-1"], "--learning-rate must be a finite number above 0, got -1.0"),
        (["train", "--learning-rate", "nan"], "--learning-rate must be a finite number above 0, got nan"),
        (["train", "--dropout", "1"], "--dropout must be at least 0 and below 1, got 1.0"),
        (["train", "--steps", "0"], "--steps must be a whole number, at least 1, got 0"),
        (["train", "--minutes", "inf"], "--minutes must be a finite number above 0, got inf"),
        (["train", "--resume", "nowhere"], "nowhere holds no checkpoint"),
        (
            ["train", "beer.txt", "--out", "beer.txt/run", "--steps", "1"],
            "cannot write to beer.txt/run: Not a directory",
        ),
        (["sample", "nowhere"], "nowhere holds no checkpoint"),
        (["sample", "damaged"], "damaged/checkpoints/step-00000003 is damaged: run.json is no JSON"),
        (["train", "beer.txt", "--config", "nowhere.toml"], "cannot read the settings in nowhere.toml"),
        (["train", "beer.txt", "--preset", "nonsense"], "--preset must be one of charrnn, got 'nonsense'"),
        (["sample", "nowhere", "--temperature", "-1"], "--temperature must be a finite number, at least 0"),
        (["sample", "nowhere", "--length", "-1"], "--length must be a whole number, at least 0, got -1"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("one.txt").write_text("x")
    Path("folder").mkdir()
    Path("damaged", "checkpoints", "step-00000003").mkdir(parents=True)
    Path("damaged", "checkpoints", "step-00000003", checkpoint.RECORD).write_bytes(b"rubbish")
    assert main(args) == 2
    error = capfd.readouterr().err
    assert error.startswith("fusedlstm: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("args", [["train", "--rnn-size", "x"], ["train", "--nonsense"], ["paint"], []])
def test_a_command_line_that_makes_no_sense_is_exit_code_2(args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2


def test_any_bytes_are_a_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "noise.bin"
    file.write_bytes(bytes(range(256)) * 8)
    assert main(["train", str(file), "--out", str(tmp_path / "run"), "--steps", "2", *TINY]) == 0
    assert main(["sample", str(tmp_path / "run"), "--length", "50", "--prime", "é"]) == 0
    assert "256 different" in capfd.readouterr().out
    # What a shell passes on that is no UTF-8 comes as lone surrogates.
    assert main(["sample", str(tmp_path / "run"), "--length", "1", "--prime", "\udcff\udcfe"]) == 0
    assert capfd.readouterr().out.startswith("\ufffd\ufffd")


def test_a_terminal_without_utf8_shows_the_rest(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert main(["train", str(text), "--out", str(tmp_path / "run"), "--steps", "1", *TINY]) == 0
    assert main(["sample", str(tmp_path / "run"), "--prime", "bière", "--length", "9"]) == 0
    assert b"bi?re" in shown.getvalue()


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert "FILE" in shown
    for field in fields(Settings)[1:]:
        assert f"--{field.name.replace('_', '-')}" in shown


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    args = command("train", text, "--out", out, "--minutes", "5", *TINY)
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGINT)
        shown, error = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in error
    assert f"fusedlstm sample {out}" in shown
    assert f"fusedlstm train --resume {out} --minutes 10" in shown
    assert checkpoint.load(out).step > 0


def test_a_signal_waits_for_the_step_to_end_and_a_second_does_not() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stop_signals() as caught:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


LIMITED = """
import resource, sys
from fusedlstm.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX resource limits")
def test_a_disk_that_refuses_is_said_and_costs_nothing(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", str(text), "--out", str(out), "--steps", "3", *TINY]) == 0
    before = {file: file.read_bytes() for file in out.rglob("step-*/*")}
    assert before
    limited = [sys.executable, "-c", LIMITED, "4096", "train", "--resume", str(out), "--steps", "6"]
    done = subprocess.run(limited, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot save to " in done.stderr
    assert "(the checkpoint before it is whole)" in done.stderr
    assert {file: file.read_bytes() for file in out.rglob("step-*/*")} == before


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_run_that_is_killed_and_resumed_is_one_that_was_not(tmp_path: Path, text: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--steps", "400", "--save-every", "7", "--dropout", "0.2", "--ema", "0.9", "--dtype", "float32"]
    flags += TINY
    assert main(["train", str(text), "--out", str(whole), *flags]) == 0
    first, again = ("train", text, "--out", killed, *flags), ("train", "--resume", killed)
    steps = []
    for attempt in (first, again, again):
        with subprocess.Popen(command(*attempt), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            begun = max(checkpoint.steps(killed), default=0)
            while max(checkpoint.steps(killed), default=0) < begun + 60 and time.monotonic() < deadline:
                time.sleep(0.001)
            process.kill()
        steps.append(checkpoint.load(killed).step)
    assert 0 < steps[0] < steps[1] < steps[2] < 400
    done = run(*again)
    assert done.returncode == 0, done.stderr
    expected, found = checkpoint.load(whole), checkpoint.load(killed)
    assert found.step == 400
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=0, atol=0)
    told = [
        [json.loads(line)["train"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    ]
    assert told[0] == told[1]


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX pipe")
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", str(text), "--out", str(out), "--steps", "1", *TINY]) == 0
    args = command("sample", out, "--length", "100000")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        error = process.stderr.read()
    assert process.wait(timeout=30) == 0
    assert error == b""
