"""Every test starts from one seed, and memory that nobody wrote holds NaN, so that reading it shows."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode wants it on a GPU
os.environ["FUSEDLSTM_AUTOTUNE"] = "0"  # plans are the model's, and nobody's cache is read
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported


@pytest.fixture(autouse=True)
def seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def as_found() -> Iterator[None]:
    """The native engine and the number of threads are afterwards what they were."""
    from fusedlstm import _C  # here: what is set above must be set before

    engine, threads = _C.engine(), torch.get_num_threads()
    yield
    _C.select_engine(engine)
    torch.set_num_threads(threads)
