"""The checkpoints of a run: folders that are whole or not there, with all that the run needs to go on.

    RUN/settings.toml                the settings, for people
    RUN/checkpoints/step-00001000/   model.safetensors, the weights; train.safetensors, all other tensors;
                                     run.json, the record of plain values, with the checksums of all three

A folder is written under a temporary name, and renamed once the disk has it: a process may die at any moment.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from errno import EWOULDBLOCK
from math import inf, isnan
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.vocab import Vocab

if sys.platform != "win32":
    import fcntl

FORMAT = 1
CHECKPOINTS, SETTINGS, LOCK = "checkpoints", "settings.toml", ".lock"
MODEL, TRAIN, RECORD = "model.safetensors", "train.safetensors", "run.json"
WEIGHTS = ("model.", "ema.")  # the tensors of MODEL; all others are in TRAIN
UNRELEASED = "checkpoint.safetensors"
NEWEST = 2  # how many are kept, beside the best
TEMPORARY, BEFORE = ".tmp", ".before"
NAME = re.compile(rf"step-(\d{{8,}})({re.escape(BEFORE)})?")
DAMAGE = (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Checkpoint:
    """A run between two steps: the record (plain values) and the tensors.

    The tensors are named model.*, ema.* (the average of the weights, if there is one), optimizer.*, state.*
    and the like.
    """

    settings: Settings
    vocab: Vocab
    text_sha256: str
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def val(self) -> float | None:
        """The validation loss in nats, if it was taken at this very step."""
        newest = self.metrics[-1] if self.metrics else {}
        return newest.get("val") if newest.get("step") == self.step else None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under one prefix, with it taken off."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}


def steps(run: str | Path) -> dict[int, Path]:
    """The folders of a run's checkpoints by their step, the oldest first; one of them may be damaged."""
    found = {}
    # A folder comes after its own BEFORE, which counts only where a process died while replacing it.
    for folder in sorted((Path(run) / CHECKPOINTS).glob("step-*"), reverse=True):
        if match := NAME.fullmatch(folder.name):
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def exists(run: str | Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return bool(steps(run))


def save(run: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, then removes all but the newest two and the one of the lowest validation loss.

    One of the same step is replaced; those of later steps, behind which the run went back, are removed.

    Raises:
        CharLMError: when the disk refuses; what was saved before is as it was.
    """
    folder = Path(run) / CHECKPOINTS / f"step-{checkpoint.step:08}"
    temporary = folder.with_name(folder.name + TEMPORARY)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear(folder.parent)
        temporary.mkdir()
        for name, data in _contents(checkpoint).items():
            _write(temporary / name, data)
        _sync(temporary)
        if folder.exists():
            os.replace(folder, folder.with_name(folder.name + BEFORE))
        os.replace(temporary, folder)
        _sync(folder.parent)
        write_whole(Path(run) / SETTINGS, checkpoint.settings.to_toml().encode())
        _prune(run, checkpoint.step)
        _clear(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # the next save tries again
        whole = " (the checkpoint before it is whole)" if exists(run) else ""
        raise CharLMError(f"cannot save to {run}: {error.strerror}{whole}") from error


def load(run: str | Path, which: str | int = "last") -> Checkpoint:
    """Reads a checkpoint, its tensors to the CPU; nothing in it is ever executed.

    Args:
        run: folder of the run, or that of one checkpoint.
        which: last, best (of the lowest validation loss), or the step.

    Raises:
        CharLMError: when there is none, or it is damaged; the message names one that is whole.
    """
    folder = _folder(Path(run), str(which))
    try:
        return _read(folder)
    except DAMAGE as error:
        raise CharLMError(f"{folder} is damaged: {error}{_instead(folder)}") from None


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint's folder, all of it read; nothing when it is whole."""
    try:
        _read(folder)
    except (*DAMAGE, CharLMError) as error:
        return str(error)
    return ""


@contextmanager
def locked(run: str | Path) -> Iterator[None]:
    """Keeps a run's folder, which is made if need be, for one process, where the system has locks for that.

    Raises:
        CharLMError: when another process has it, or there can be no such folder.
    """
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(Path(run) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CharLMError(f"cannot write to {run}: {error.strerror}") from error
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                reason = "another process is training there" if error.errno == EWOULDBLOCK else error.strerror
                raise CharLMError(f"cannot lock {run}: {reason}") from None
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, has the disk keep it, then renames it into place.

    Raises:
        OSError: when the disk refuses; a file that was there is as it was.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _write(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint, by name."""
    # Copies: tied weights are one tensor under two names, which safetensors refuses.
    tensors = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in checkpoint.tensors.items()}
    weights = {n: t for n, t in tensors.items() if n.startswith(WEIGHTS)}
    rest = {n: t for n, t in tensors.items() if n not in weights}
    files = {MODEL: safetensors.torch.save(weights), TRAIN: safetensors.torch.save(rest)}
    record = (
        {"format": FORMAT}
        | vars(checkpoint)
        | {
            "settings": asdict(checkpoint.settings),
            "vocab": checkpoint.vocab.record(),
            "val": checkpoint.val,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
    )
    del record["tensors"]
    record["sha256"][RECORD] = _digest(record)
    return files | {RECORD: json.dumps(record, indent=1).encode()}


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of a record, but for its own."""
    sums = {name: value for name, value in record["sha256"].items() if name != RECORD}
    return hashlib.sha256(json.dumps(record | {"sha256": sums}, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> Checkpoint:
    record = _record(folder)
    tensors: dict[str, Tensor] = {}
    for name in (MODEL, TRAIN):
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != record["sha256"][name]:
            raise ValueError(f"the checksum of {name} differs")
        tensors |= safetensors.torch.load(data)
    return Checkpoint(
        Settings.from_dict(record["settings"]),
        Vocab.from_record(record["vocab"]),
        record["text_sha256"],
        record["step"],
        record["seconds"],
        record["metrics"],
        tensors,
    )


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except ValueError:
        raise ValueError(f"{RECORD} is no JSON") from None
    if record["sha256"][RECORD] != _digest(record):
        raise ValueError(f"the checksum of {RECORD} differs")
    if record["format"] != FORMAT:
        expected = f"must be of format {FORMAT}, got {record['format']}"
        raise CharLMError(f"{folder} {expected}: another version of fusedlstm wrote it")
    return record


def _loss(folder: Path) -> float:
    """The validation loss by which a checkpoint is the best; infinity where none can be read."""
    try:
        val = _record(folder)["val"]
    except (*DAMAGE, CharLMError):
        return inf
    return inf if val is None or isnan(val) else val


def _best(found: dict[int, Path]) -> Path | None:
    """The folder of the lowest validation loss, the newest of equals."""
    losses = {folder: _loss(folder) for folder in reversed(found.values())}
    best = min(losses, key=lambda folder: losses[folder], default=None)
    return best if best and losses[best] < inf else None


def _folder(run: Path, which: str) -> Path:
    """Where the checkpoint is that is asked for."""
    if any((run / name).exists() for name in (MODEL, TRAIN, RECORD)):
        if which != "last":
            raise CharLMError(f"--checkpoint {which} needs the folder of a run, got that of one step: {run}")
        return run
    found = steps(run)
    if not found and (old := run / UNRELEASED).exists():
        raise CharLMError(f"{old} is of a format that was never released: train the run anew")
    if not found:
        raise CharLMError(f"{run} holds no checkpoint")
    wanted = {"last": [*found.values()][-1], "best": _best(found)}
    wanted |= {str(step): folder for step, folder in found.items()}
    if which not in wanted:
        choices = ", ".join(str(step) for step in found)
        raise CharLMError(f"--checkpoint must be last, best or a step of {run} ({choices}), got {which}")
    if (folder := wanted[which]) is None:
        raise CharLMError(f"{run} holds no checkpoint with a validation loss: take --checkpoint last")
    return folder


def _instead(damaged: Path) -> str:
    """What to take for a damaged checkpoint."""
    others = {step: folder for step, folder in steps(damaged.parent.parent).items() if folder != damaged}
    whole = (step for step in reversed(others) if not damage(others[step]))
    step = next(whole, None)
    return "; no other is whole" if step is None else f"; step {step} is whole: --checkpoint {step}"


def _prune(run: str | Path, step: int) -> None:
    """Removes the checkpoints after a step, and those up to it but the newest and the best."""
    found = steps(run)
    before = {s: folder for s, folder in found.items() if s <= step}
    kept = {*list(before.values())[-NEWEST:], _best(before)}
    for folder in found.values():
        if folder not in kept:
            # Under its own name a checkpoint is never half there.
            temporary = folder.with_name(folder.name + TEMPORARY)
            os.replace(folder, temporary)
            shutil.rmtree(temporary)


def _clear(folder: Path) -> None:
    """Removes what a process left that died while it saved."""
    for path in folder.iterdir():
        if path.suffix == TEMPORARY or (path.suffix == BEFORE and path.with_suffix("").exists()):
            shutil.rmtree(path)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Has the disk keep the names in a folder."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
