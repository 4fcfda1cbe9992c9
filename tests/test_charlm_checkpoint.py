"""A checkpoint is whole or not there: whatever fails, whenever the process dies, whichever byte is hit."""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import random
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
from fusedlstm.charlm.checkpoint import FILE, Checkpoint
from fusedlstm.charlm.settings import CharLMError, Settings


def at_step(step: int) -> Checkpoint:
    tensors = {
        "model.w": torch.full((50,), float(step)),
        "state.h": torch.ones(3, dtype=torch.bfloat16) * step,
    }
    return Checkpoint(
        Settings(rnn_size=7), bytes(range(256)), "abc", step, 1.5, [{"step": 1, "train": 2.0}], tensors
    )


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = at_step(3)
    checkpoint.save(tmp_path / "deep" / "run", saved)
    loaded = checkpoint.load(tmp_path / "deep" / "run")
    assert vars(loaded) | {"tensors": 0} == vars(saved) | {"tensors": 0}
    torch.testing.assert_close(loaded.tensors, saved.tensors, rtol=0, atol=0)
    assert loaded.part("model.").keys() == {"w"}
    assert sorted(os.listdir(tmp_path / "deep" / "run")) == ["checkpoint.safetensors", "run.json"]


def failing_at(call: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """A function that does its work but for one call, which raises."""
    calls = iter(range(1, 1000))

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise error
        return function(*args, **kwargs)

    return flaky


@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (os, "replace"), (builtins, "open")])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_moment_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: BaseException
) -> None:
    checkpoint.save(tmp_path, at_step(1))
    messages: list[str] = []
    for call in range(1, 6):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing_at(call, getattr(module, name), error))
            try:
                checkpoint.save(tmp_path, at_step(2))
            except (CharLMError, KeyboardInterrupt) as raised:
                messages.append(str(raised))
        loaded = checkpoint.load(tmp_path)
        assert loaded.step in (1, 2)
        assert (loaded.tensors["model.w"] == loaded.step).all()
    assert len(messages) >= 2
    if isinstance(error, OSError):
        assert all("No space left on device (the checkpoint before it is whole)" in m for m in messages)
        assert not list(tmp_path.glob("*.tmp"))
    checkpoint.save(tmp_path, at_step(3))
    assert checkpoint.load(tmp_path).step == 3


def test_the_disk_has_a_file_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replace(old: Path, new: Path) -> None:
        done.append(f"rename {new.name}")
        os.rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    checkpoint.save(tmp_path, at_step(1))
    folder = ["folder"] if os.name == "posix" else []
    assert done == ["file", f"rename {FILE}", *folder, "file", "rename run.json", *folder]


KILLER = """
import os, random, signal, sys, time
from fusedlstm.charlm import checkpoint
sys.path.insert(0, {tests!r})
from test_charlm_checkpoint import at_step

random.seed(0)
run, last, seen = {run!r}, 0, set()
checkpoint.save(run, at_step(0))
for _ in range(25):
    child = os.fork()
    if not child:
        for step in range(last + 1, last + 1000):
            checkpoint.save(run, at_step(step))
        os._exit(0)
    time.sleep(random.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = checkpoint.load(run)
    assert last <= loaded.step < last + 1000, (last, loaded.step)
    assert (loaded.tensors["model.w"] == loaded.step).all()
    last = loaded.step
    seen |= set(os.listdir(run))
print(last, "interrupted" if any(name.endswith(".tmp") for name in seen) else "never interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
def test_a_killed_process_leaves_old_or_new(tmp_path: Path) -> None:
    script = KILLER.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    last, interrupted = done.stdout.split(maxsplit=1)
    assert int(last) > 10
    assert interrupted.strip() == "interrupted"


def test_no_damaged_byte_goes_unnoticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, at_step(3))
    whole = (tmp_path / FILE).read_bytes()
    noticed, rng = 0, random.Random(0)
    for position in rng.sample(range(len(whole)), 400):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        (tmp_path / FILE).write_bytes(damaged)
        try:
            loaded = checkpoint.load(tmp_path)
        except CharLMError as error:
            noticed += "is damaged: " in str(error)
        else:  # nothing but white space between the parts of the header can be harmless
            assert vars(loaded) | {"tensors": 0} == vars(at_step(3)) | {"tensors": 0}
            torch.testing.assert_close(loaded.tensors, at_step(3).tensors, rtol=0, atol=0)
    assert noticed > 380


@pytest.mark.parametrize("keep", [0, 1, 8, 100, -1])
def test_a_cut_file_is_damaged(tmp_path: Path, keep: int) -> None:
    checkpoint.save(tmp_path, at_step(3))
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:keep])
    with pytest.raises(CharLMError, match="is damaged: "):
        checkpoint.load(tmp_path)


def test_a_foreign_file_is_damaged_and_a_pickle_is_never_run(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(CharLMError, match="is damaged: "):
        checkpoint.load(tmp_path)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was run",))

    for payload in (pickle.dumps(Payload()), b"\x00" * 7 + b"\xff" * 100):
        (tmp_path / FILE).write_bytes(payload)
        with pytest.raises(CharLMError, match="is damaged: "):
            checkpoint.load(tmp_path)
    assert not (tmp_path / "was run").exists()


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    with pytest.raises(CharLMError, match=r"zoneout.*not known to this version"):
        Settings.from_dict({"zoneout": 0.5})


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(CharLMError, match=r"holds no checkpoint: .*No such file"):
        checkpoint.load(tmp_path)
    assert not checkpoint.exists(tmp_path)
