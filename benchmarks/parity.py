"""Correct first: a pass may be twice as far from float64 as torch's own, plus one rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import Contender, Pass
from benchmarks.shapes import Row

REFERENCE_ROUNDING = 1e-13  # float64 is not exact either


def check(row: Row, contenders: Mapping[str, Contender]) -> dict[str, Any]:
    """Compares outputs and gradients of "ours" and "torch" with torch in float64.

    Returns:
        "ok", and for "outputs" and "gradients" both errors and the one allowed; errors are the largest over
        the group's tensors, relative to the largest value of the tensor.
    """
    truth = Pass(row, contenders["torch"], torch.float64).results()
    ours, torchs = (Pass(row, contenders[name]).results() for name in ("ours", "torch"))
    found: dict[str, Any] = {"ok": True}
    for k, group in enumerate(("outputs", "gradients")):
        if not truth[k]:
            continue
        torch_error, error = _error(torchs[k], truth[k]), _error(ours[k], truth[k])
        allowed = 2 * torch_error + max(torch.finfo(row.torch_dtype).eps, REFERENCE_ROUNDING)
        found[group] = {"ours": error, "torch": torch_error, "allowed": allowed}
        found["ok"] = found["ok"] and error <= allowed  # false for NaN
    return found


def _error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    if found.keys() != truth.keys():
        raise ValueError(f"results must be {sorted(truth)}, got {sorted(found)}")
    errors = [(found[n] - t).abs().max().item() / (t.abs().max().item() or 1.0) for n, t in truth.items()]
    return float(np.max(errors))  # unlike max(), keeps NaN
