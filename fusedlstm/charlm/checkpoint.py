"""Checkpoints: one safetensors file, written whole or not at all, with all that a run needs to go on."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from fusedlstm.charlm.settings import CharLMError, Settings

FILE = "checkpoint.safetensors"
RECORD = "run.json"  # a copy of the record for people and other programs; never read back


@dataclass
class Checkpoint:
    """A run between two steps: the record (plain values) and the tensors, named as in `train`."""

    settings: Settings
    vocab: bytes
    text_sha256: str
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under one prefix, with it taken off."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}


def exists(run: str | Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return (Path(run) / FILE).exists()


def save(run: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; at every moment the folder holds the old one or the new one, whole.

    Raises:
        CharLMError: when the disk refuses; the old checkpoint is as it was.
    """
    record = vars(checkpoint) | {
        "settings": asdict(checkpoint.settings),
        "vocab": checkpoint.vocab.decode("latin-1"),
    }
    tensors = record.pop("tensors")
    text = {"record": json.dumps(record, indent=1)}
    digest = _text_and_digest(safetensors.torch.save(tensors, text))[1]
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
        _write(Path(run) / FILE, safetensors.torch.save(tensors, text | {"sha256": digest}))
        _write(Path(run) / RECORD, text["record"].encode())
    except OSError as error:
        whole = " (the checkpoint before it is whole)" if exists(run) else ""
        raise CharLMError(f"cannot save to {run}: {error.strerror}{whole}") from error


def load(run: str | Path) -> Checkpoint:
    """Reads a checkpoint; nothing in it is ever executed.

    Raises:
        CharLMError: when there is none, or it is damaged.
    """
    file = Path(run) / FILE
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CharLMError(f"{run} holds no checkpoint: cannot read {file}: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(data)
        text, digest = _text_and_digest(data)
        if text["sha256"] != digest:
            raise ValueError("its checksum differs")
        record = json.loads(text["record"])
        record["vocab"] = record["vocab"].encode("latin-1")
        record["settings"] = Settings.from_dict(record["settings"])
        return Checkpoint(**record, tensors=tensors)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CharLMError(f"{file} is damaged: {error}") from None


def _text_and_digest(data: bytes) -> tuple[dict[str, str], str]:
    """The text in a safetensors file and the SHA-256 of the whole file but for the text named sha256."""
    end = 8 + int.from_bytes(data[:8], "little")  # the JSON header follows its length
    header = json.loads(data[8:end])
    text = header["__metadata__"]
    rest = header | {"__metadata__": {name: text[name] for name in text if name != "sha256"}}
    return text, hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + data[end:]).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, has the disk keep it, then renames it into place."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is kept by the folder; elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
