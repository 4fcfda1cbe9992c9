"""A checkpoint is whole or not there: whatever fails, whenever the process dies, whichever byte is hit."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.checkpoint import MODEL, RECORD, TRAIN, Checkpoint
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.vocab import Vocab

FILES = (MODEL, TRAIN, RECORD)
FULL = OSError(errno.ENOSPC, "No space left on device")


def at_step(step: int, val: float | None = None, **settings: Any) -> Checkpoint:
    tensors = {
        "model.w": torch.full((50,), float(step)),
        "ema.w": torch.full((50,), step + 0.5),
        "optimizer.0.exp_avg": torch.full((50,), -float(step)),
        "state.h": torch.ones(3, dtype=torch.bfloat16) * step,
    }
    metrics = [{"step": step - 1, "train": 2.0}] + ([] if val is None else [{"step": step, "val": val}])
    vocab = Vocab("bytes", bytes(range(256)).decode("latin-1"))
    return Checkpoint(
        Settings(rnn_size=7, sample_at=(3, 5), **settings), vocab, "abc", step, 1.5, metrics, tensors
    )


def assert_same(loaded: Checkpoint, saved: Checkpoint) -> None:
    assert vars(loaded) | {"tensors": 0} == vars(saved) | {"tensors": 0}
    torch.testing.assert_close(loaded.tensors, saved.tensors, rtol=0, atol=0)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08}"


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    saved = at_step(3, 1.25)
    checkpoint.save(run, saved)
    assert_same(checkpoint.load(run), saved)
    assert checkpoint.load(run).part("model.").keys() == {"w"}
    assert sorted(os.listdir(run)) == ["checkpoints", "settings.toml"]
    assert sorted(os.listdir(folder_of(run, 3))) == sorted(FILES)
    assert safetensors.torch.load_file(folder_of(run, 3) / MODEL).keys() == {"model.w", "ema.w"}
    assert Settings.from_toml(run / "settings.toml") == saved.settings
    assert json.loads((folder_of(run, 3) / RECORD).read_text())["val"] == 1.25


def test_tied_weights_come_back_under_both_names(tmp_path: Path) -> None:
    w = torch.arange(6.0).view(2, 3)
    saved = at_step(1)
    saved.tensors = {"model.embedding": w, "model.decoder": w, "state.t": w.t(), "state.row": w[1]}
    checkpoint.save(tmp_path, saved)
    assert_same(checkpoint.load(tmp_path), saved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_tensors_of_a_gpu_come_back_on_the_cpu(tmp_path: Path) -> None:
    there, here = at_step(3), at_step(3)
    there.tensors = {name: tensor.cuda() for name, tensor in there.tensors.items()}
    checkpoint.save(tmp_path, there)
    assert_same(checkpoint.load(tmp_path), here)


def failing_at(call: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """A function that does its work but for one call, which raises."""
    calls = iter(range(1, 1000))

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise error
        return function(*args, **kwargs)

    return flaky


@pytest.mark.parametrize("step", [1, 2], ids=["the same step again", "the next step"])
@pytest.mark.parametrize(
    ("module", "name", "least"),
    [(os, "fsync", 5), (os, "replace", 2), (builtins, "open", 4), (os, "open", 2), (shutil, "rmtree", 0)],
)
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_failure_at_any_moment_leaves_old_or_new(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    least: int,
    error: BaseException,
    step: int,
) -> None:
    checkpoint.save(tmp_path, at_step(1, seed=1))
    messages: list[str] = []
    for call in range(1, 20):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing_at(call, getattr(module, name), error))
            try:
                checkpoint.save(tmp_path, at_step(step, seed=call + 1))
            except (CharLMError, KeyboardInterrupt) as raised:
                messages.append(str(raised))
            else:
                break  # there are no more calls
        loaded = checkpoint.load(tmp_path)
        assert loaded.step in (1, step)
        assert_same(loaded, at_step(loaded.step, seed=loaded.settings.seed))
    assert least <= len(messages) < 19
    if isinstance(error, OSError):
        assert all("No space left on device (the checkpoint before it is whole)" in m for m in messages)
    checkpoint.save(tmp_path, at_step(3))
    assert checkpoint.load(tmp_path).step == 3
    assert not {path.suffix for path in tmp_path.rglob("*")} & {".tmp", ".before"}


def test_a_full_disk_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, at_step(1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for call in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing_at(call, os.fsync, FULL))
            with pytest.raises(CharLMError, match=r"cannot save to .*: No space left on device"):
                checkpoint.save(tmp_path, at_step(2))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_disk_has_a_folder_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename = os.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replace(old: Path, new: Path) -> None:
        done.append(f"rename {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    checkpoint.save(tmp_path, at_step(1))
    folder = ["folder"] if os.name == "posix" else []
    assert done == [
        *["file"] * 3, *folder, "rename step-00000001", *folder, "file", "rename settings.toml", *folder,
    ]  # fmt: skip


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.watch import MetricsFile, read_metrics
sys.path.insert(0, {tests!r})
from test_charlm_checkpoint import assert_same, at_step

random.seed(0)
run, last, seen, began = Path({run!r}), 1, set(), time.perf_counter()
checkpoint.save(run, at_step(1, val=0.5))
seconds = time.perf_counter() - began  # that a save takes, on a disk as busy as it is
MetricsFile(run).metrics(1, {{"loss": 1.0}})
for _ in range(25):
    child = os.fork()
    if not child:
        metrics = MetricsFile(run, last)
        for step in range(last + 1, last + 1000):
            metrics.metrics(step, {{"loss": float(step)}})
            checkpoint.save(run, at_step(step, val=1 + random.random()))
            checkpoint.save(run, at_step(step, val=1 + random.random()))
        os._exit(0)
    time.sleep(random.uniform(0, 4 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen |= set(os.listdir(run / "checkpoints"))
    loaded = checkpoint.load(run)
    assert last <= loaded.step < last + 1000, (last, loaded.step)
    assert_same(loaded, at_step(loaded.step, val=loaded.val))
    assert checkpoint.load(run, "best").step == 1
    damaged = [folder for folder in checkpoint.steps(run).values() if checkpoint.damage(folder)]
    assert not damaged, damaged
    last = loaded.step
    MetricsFile(run, last)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, last + 1)), read_metrics(run)
print(last, *sorted({{name.partition(".")[2] for name in seen}}))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
def test_a_killed_process_leaves_old_or_new(tmp_path: Path) -> None:
    script = KILLER.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last, *leftovers = done.stdout.split()
    assert int(last) > 5
    assert "tmp" in leftovers  # it was killed in the midst of saving


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    kept = {}
    for step, val in (
        (100, 3.0),
        (200, 1.0),
        (300, None),
        (400, 2.0),
        (500, math.nan),
        (600, 0.5),
        (700, 0.5),
    ):
        checkpoint.save(tmp_path, at_step(step, val))
        kept[step] = list(checkpoint.steps(tmp_path))
    assert kept == {
        100: [100], 200: [100, 200], 300: [200, 300], 400: [200, 300, 400], 500: [200, 400, 500],
        600: [500, 600], 700: [600, 700],
    }  # fmt: skip
    assert checkpoint.load(tmp_path).step == checkpoint.load(tmp_path, "best").step == 700
    assert checkpoint.load(tmp_path, 600).step == checkpoint.load(tmp_path, "600").step == 600
    assert checkpoint.load(folder_of(tmp_path, 600)).step == 600


def test_a_loss_of_an_earlier_step_is_not_this_one_s(tmp_path: Path) -> None:
    saved = at_step(7, 1.0)
    saved.step = 8
    assert saved.val is None
    checkpoint.save(tmp_path, saved)
    with pytest.raises(CharLMError, match=r"no checkpoint with a validation loss"):
        checkpoint.load(tmp_path, "best")


def test_a_run_that_went_back_loses_what_came_after(tmp_path: Path) -> None:
    for step, val in ((100, 2.0), (200, 1.0), (300, 0.1)):
        checkpoint.save(tmp_path, at_step(step, val))
    checkpoint.save(tmp_path, at_step(250, 1.5))
    assert list(checkpoint.steps(tmp_path)) == [200, 250]
    assert checkpoint.load(tmp_path).step == 250
    assert checkpoint.load(tmp_path, "best").step == 200


def test_what_is_asked_for_and_not_there_is_said(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, at_step(900, 1.0))
    checkpoint.save(tmp_path, at_step(1000, 1.0))
    for which in ("901", "lst", "", "-1"):
        with pytest.raises(
            CharLMError, match=rf"must be last, best or a step of .* \(900, 1000\), got {which}$"
        ):
            checkpoint.load(tmp_path, which)
    with pytest.raises(
        CharLMError, match="--checkpoint best needs the folder of a run, got that of one step"
    ):
        checkpoint.load(folder_of(tmp_path, 900), "best")


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(CharLMError, match=r"holds no checkpoint$"):
        checkpoint.load(tmp_path)
    with pytest.raises(CharLMError, match=r"holds no checkpoint$"):
        checkpoint.load(tmp_path / "nowhere")
    assert not checkpoint.exists(tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(CharLMError, match="never released: train the run anew"):
        checkpoint.load(tmp_path)


def test_a_damaged_one_is_named_and_a_whole_one_offered(tmp_path: Path) -> None:
    for step in (800, 900, 1000):
        checkpoint.save(tmp_path, at_step(step, step / 1000))
    (folder_of(tmp_path, 1000) / TRAIN).write_bytes(b"rubbish")
    with pytest.raises(CharLMError) as raised:
        checkpoint.load(tmp_path)
    reason = f"the checksum of {TRAIN} differs; step 900 is whole: --checkpoint 900"
    assert str(raised.value) == f"{folder_of(tmp_path, 1000)} is damaged: {reason}"
    (folder_of(tmp_path, 900) / MODEL).unlink()
    with pytest.raises(CharLMError, match=r"step 800 is whole: --checkpoint 800$"):
        checkpoint.load(tmp_path)
    (folder_of(tmp_path, 800) / RECORD).write_text("{}")
    for run in (tmp_path, *checkpoint.steps(tmp_path).values()):
        with pytest.raises(CharLMError, match=r"is damaged: .*; no other is whole$"):
            checkpoint.load(run)
    checkpoint.save(tmp_path, at_step(1000))  # a damaged one is in nobody's way
    assert checkpoint.load(tmp_path).step == 1000


def test_no_damaged_byte_goes_unnoticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, at_step(3))
    rng = random.Random(0)
    for name in FILES:
        file = folder_of(tmp_path, 3) / name
        whole, noticed = file.read_bytes(), 0
        for position in rng.sample(range(len(whole)), 150):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            try:
                loaded = checkpoint.load(tmp_path)
            except CharLMError as error:
                noticed += "is damaged: " in str(error)
            else:  # nothing but the case of a hexadecimal digit in an escaped character can be harmless
                assert name == RECORD
                assert_same(loaded, at_step(3))
        assert noticed > (140 if name == RECORD else 149)
        file.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 8, 100, -1])
def test_a_cut_file_is_damaged(tmp_path: Path, name: str, keep: int) -> None:
    checkpoint.save(tmp_path, at_step(3))
    file = folder_of(tmp_path, 3) / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CharLMError, match=r"is damaged: "):
        checkpoint.load(tmp_path)


def forge(folder: Path, **values: Any) -> None:
    """Makes all checksums of a checkpoint fit its files."""
    record = json.loads((folder / RECORD).read_text()) | values
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL, TRAIN)}
    text = json.dumps(record | {"sha256": sums}, sort_keys=True)
    record["sha256"] = sums | {RECORD: hashlib.sha256(text.encode()).hexdigest()}
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("forged", [False, True])
def test_a_pickle_is_never_run(tmp_path: Path, name: str, forged: bool) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was run",))

    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "was run").exists()  # it would show
    (tmp_path / "was run").unlink()
    checkpoint.save(tmp_path, at_step(3))
    torch.save(Payload(), tmp_path / "payload")
    for payload in (pickle.dumps(Payload()), (tmp_path / "payload").read_bytes()):
        (folder_of(tmp_path, 3) / name).write_bytes(payload)
        if forged and name != RECORD:
            forge(folder_of(tmp_path, 3))
        with pytest.raises(CharLMError, match=r"is damaged: "):
            checkpoint.load(tmp_path)
    assert not (tmp_path / "was run").exists()


def test_what_another_version_wrote_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, at_step(3))
    forge(folder_of(tmp_path, 3))
    assert_same(checkpoint.load(tmp_path), at_step(3))
    forge(folder_of(tmp_path, 3), format=2)
    with pytest.raises(
        CharLMError, match="must be of format 1, got 2: another version of fusedlstm wrote it"
    ):
        checkpoint.load(tmp_path)
    forge(folder_of(tmp_path, 3), format=1, settings={"peepholes": True})
    with pytest.raises(CharLMError, match=r"peepholes.*not known to this version"):
        checkpoint.load(tmp_path)
    forge(folder_of(tmp_path, 3), settings={}, vocab={"kind": "chars", "symbols": "ba"})
    with pytest.raises(CharLMError, match=r"is damaged: "):
        checkpoint.load(tmp_path)


LOCKING = """
import sys
from fusedlstm.charlm import checkpoint
with checkpoint.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no fcntl")
def test_a_run_is_one_process_s(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    command = [sys.executable, "-c", LOCKING, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        message = r"cannot lock .*run: another process is training there"
        with pytest.raises(CharLMError, match=message), checkpoint.locked(run):
            raise AssertionError("two have it")
        other.kill()  # a process that dies holds nothing
    with checkpoint.locked(run):
        checkpoint.save(run, at_step(1))
    with checkpoint.locked(run):
        assert checkpoint.load(run).step == 1


def test_what_fails_under_the_lock_comes_through(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), checkpoint.locked(tmp_path):
        raise BlockingIOError("of the terminal's")
    (tmp_path / "file").touch()
    with pytest.raises(CharLMError, match=r"cannot write to .*file: "), checkpoint.locked(tmp_path / "file"):
        raise AssertionError("a file is no folder")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_file_is_written_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file = tmp_path / "file"
    checkpoint.write_whole(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing_at(1, getattr(os, name), FULL))
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write_whole(file, b"new")
    assert os.listdir(tmp_path) == ["file"] and file.read_bytes() == b"old"
    checkpoint.write_whole(file, b"new")
    assert os.listdir(tmp_path) == ["file"] and file.read_bytes() == b"new"
