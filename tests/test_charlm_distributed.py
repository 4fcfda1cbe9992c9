"""Several processes train as one: the same losses, and checkpoints that any number of them can go on from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.distributed import Group
from fusedlstm.charlm.settings import CharLMError

SIZES = [
    "--rnn-size",
    "12",
    "--batch-size",
    "4",
    "--seq-length",
    "10",
    "--sample-length",
    "20",
    "--dtype",
    "float32",
]


def run(processes: int, *args: str | Path) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        "-m",
        "fusedlstm",
        "train",
        *map(str, args),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "beer.txt"
    file.write_bytes(b"".join(b"%d bottles of beer on the wall\n" % n for n in range(100, 0, -1)))
    return file


def test_two_processes_train_as_one(tmp_path: Path, text: Path) -> None:
    flags = [text, "--steps", "40", "--save-every", "10", *SIZES]
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, folder in ((1, one), (2, two)):
        done = run(processes, *flags, "--out", folder)
        assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stdout
    assert done.stdout.count("saved in") == 1
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert len(losses(one)) >= 4
    kept = checkpoint.load(two)
    assert kept.tensors["state.0"].shape == (2, 4, 12)
    torch.testing.assert_close(kept.part("state."), checkpoint.load(one).part("state."), rtol=1e-2, atol=1e-3)

    # What two have begun, one can end, and the other way round.
    for processes, folder in ((1, two), (2, one)):
        done = run(processes, "--resume", folder, "--steps", "60")
        assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)


def test_a_batch_that_cannot_be_dealt_out_is_refused() -> None:
    group = Group(torch.device("cpu"), rank=1, size=3)
    assert group.rows(6) == slice(2, 4)
    with pytest.raises(CharLMError, match="--batch-size must be a multiple of the 3 processes, got 4"):
        group.rows(4)


GROUP = """
import torch
from fusedlstm.charlm.distributed import group
from fusedlstm.charlm.settings import Settings

with group(Settings(device="cpu")) as processes:
    rank = processes.rank
    assert processes.size == 2 and processes.leads == (rank == 0)
    assert processes.agreed(rank) == 1 and processes.mean(rank) == 0.5
    rows = processes.gathered(torch.full((1, 2), rank), dim=1)
    assert rows.tolist() == [[0, 0, 1, 1]]
"""


def test_processes_agree(tmp_path: Path) -> None:
    script = tmp_path / "group.py"
    script.write_text(GROUP)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
