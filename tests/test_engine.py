"""The native engine: every instruction set of this processor, any number of threads, kept buffers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import fusedlstm
from cases import CASES, DTYPES, Case, assert_close, ours
from fusedlstm import _C

pytestmark = pytest.mark.usefixtures("as_found")

ENGINES = _C.available_engines()
# What the table leaves out: batches that take one step at a time, more rows than a chunk, wide inputs.
LARGE = [
    Case(3, 130, 20, 48),
    Case(9, 200, 31, 5, L=2, bi=True, packed="unsorted"),
    Case(40, 17, 130, 70, bi=True),
    Case(400, 1, 32, 32, packed="sorted"),
    Case(5, 100, 65, 40, ids=True),
    Case(2, 3, 4, 300),
]
NATIVE = [case for case in CASES if not case.proj]


def test_the_widest_engine_runs() -> None:
    assert ENGINES[-1] == "portable" and _C.engine() == ENGINES[0]


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine must be one of \[.*portable\].*got 'abacus'"):
        _C.select_engine("abacus")


@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_on_large_cases(engine: str, dtype: torch.dtype, case: Case) -> None:
    _C.select_engine(engine)
    assert_close(ours(case, dtype, "cpu"), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_narrower_engines_on_the_table(engine: str, dtype: torch.dtype) -> None:
    _C.select_engine(engine)
    failures = []
    for case in NATIVE:
        try:
            assert_close(ours(case, dtype, "cpu"), case, dtype)
        except AssertionError as error:
            failures.append(f"{case}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [Case(33, 17, 20, 100, L=2, bi=True), Case(9, 200, 31, 16), Case(65, 2, 8, 80)], ids=str
)
def test_the_bits_do_not_depend_on_the_threads(dtype: torch.dtype, case: Case) -> None:
    torch.set_num_threads(1)
    alone = ours(case, dtype, "cpu")
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for name, values in ours(case, dtype, "cpu").items():
            # Sums over the batch are cut where many threads share few units: only their order differs.
            if name.startswith("dbias"):
                np.testing.assert_allclose(values, alone[name], rtol=0, atol=1e-2 * np.abs(values).max())
            else:
                np.testing.assert_array_equal(values, alone[name], err_msg=f"{name} with {threads} threads")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_an_infinite_input_spreads_as_in_torch(engine: str, value: float) -> None:
    # H fills no vector: what lies in the lanes beyond it must not leak.
    _C.select_engine(engine)
    theirs = torch.nn.LSTM(3, 5)
    lstm = fusedlstm.LSTM(3, 5, backend="cpu")
    lstm.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3)
    x[1, 0, 2] = value
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(lstm(x)[0], theirs(x)[0], equal_nan=True, rtol=1e-5, atol=1e-6)


def test_seventy_thousand_steps() -> None:
    theirs = torch.nn.LSTM(2, 3)
    lstm = fusedlstm.LSTM(2, 3, backend="cpu")
    lstm.load_state_dict(theirs.state_dict())
    x = torch.randn(70_000, 1, 2)
    y, expected = lstm(x)[0], theirs(x)[0]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(lstm.weight_hh_l0.grad, theirs.weight_hh_l0.grad, rtol=1e-3, atol=1e-2)


def test_a_kept_buffer_is_lent_again_and_only_once() -> None:
    _C.release_buffers()
    first = torch.from_dlpack(_C.buffer(8 << 20))
    address = first.data_ptr()
    second = torch.from_dlpack(_C.buffer(8 << 20))
    assert second.data_ptr() != address
    del first
    assert torch.from_dlpack(_C.buffer(8 << 20)).data_ptr() == address


def test_large_outputs_outlive_their_module() -> None:
    lstm = fusedlstm.LSTM(64, 256, backend="cpu")
    x = torch.randn(100, 16, 64)
    with torch.no_grad():
        first = lstm(x)[0]
        kept = first.clone()
        for _ in range(3):
            lstm(torch.randn_like(x))
    del lstm
    _C.release_buffers()
    assert torch.equal(first, kept)


def test_a_capsule_that_nobody_takes_gives_its_buffer_back() -> None:
    _C.release_buffers()
    del_me = _C.buffer(8 << 20)
    del del_me
    one = torch.from_dlpack(_C.buffer(8 << 20)).data_ptr()
    assert torch.from_dlpack(_C.buffer(8 << 20)).data_ptr() == one


def test_the_ceiling_is_a_rate() -> None:
    # Far below what any processor of this century does, far above what none can.
    assert 1e8 < _C.peak(0, 1, 0.01) < 1e13


def test_auto_hands_over_where_torch_was_measured_faster() -> None:
    lstm = fusedlstm.LSTM(4, 512)
    x = torch.randn(2, 64, 4)
    with torch.no_grad():
        text = fusedlstm.explain(lstm, x)
    assert re.search(r"cpu\W.*torch \(oneDNN\) was measured", text) and re.search(r"torch\W.*runs", text)
    assert re.search(r"cpu\W.*runs", fusedlstm.explain(lstm, x))  # with gradients ours is faster
