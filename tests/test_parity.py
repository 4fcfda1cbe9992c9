"""Every backend computes what the reference does, to torch's precision, forward and backward, every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cases import CASES, Case, assert_close, ours, served


@pytest.mark.parametrize(("backend", "dtype", "case"), list(served()), ids=str)
def test_outputs_and_gradients(backend: str, dtype: torch.dtype, case: Case) -> None:
    found = ours(case, dtype, backend)
    assert_close(found, case, dtype)
    again = ours(case, dtype, backend)
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name], err_msg=f"{name} differs between two runs")


def test_the_table_has_every_size_and_option() -> None:
    assert {case.H for case in CASES} >= {1, 3, 16, 33, 64, 100}
    assert {case.B for case in CASES} >= {1, 2, 5, 17}
    assert {case.T for case in CASES} >= {1, 2, 7, 33} and max(case.T for case in CASES) >= 1000
    assert len({str(case) for case in CASES}) == len(CASES)
