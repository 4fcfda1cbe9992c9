"""Correct first: a pass may be twice as far from float64 as torch's own, plus one rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import Contender, Pass, failure
from benchmarks.shapes import Row

REFERENCE_ROUNDING = 1e-13  # float64 is not exact either


def check(row: Row, contenders: Mapping[str, Contender]) -> dict[str, Any]:
    """Compares everybody's outputs and gradients with torch in float64.

    Args:
        row: shape and mode.
        contenders: by name, with "ours" and "torch" among them.

    Returns:
        "ok" for ours, "wrong" with a reason for each of the others that is wrong or fails, and for "outputs"
        and "gradients" all errors, and those allowed: by torch's own error as it comes, and for others' code
        by its error in the setting that is further off. Errors are the largest over the group's tensors,
        relative to the largest value of the tensor.
    """
    truth = Pass(row, contenders["torch"], torch.float64).results()
    rounding = max(torch.finfo(row.torch_dtype).eps, REFERENCE_ROUNDING)
    wrong, errors = dict[str, str](), dict[str, dict[str, float]]()
    for name, contender in contenders.items():
        try:
            results = Pass(row, contender).results()
        except Exception as error:  # others' code, of any kind
            if name in ("ours", "torch"):
                raise
            wrong[name] = failure(error)
            continue
        for group, values, expected in zip(("outputs", "gradients"), results, truth, strict=True):
            if expected:
                errors.setdefault(group, {})[name] = _error(values, expected)
    found: dict[str, Any] = {}
    for group, of in errors.items():
        torchs = of["torch"], max(of.get("torch_plain", 0.0), of["torch"])
        allowed, allowed_others = (2 * error + rounding for error in torchs)
        found[group] = of | {"allowed": allowed, "allowed_others": allowed_others}
        for name, error in of.items():
            most = allowed if name.startswith("ours") else allowed_others
            if not error <= most:  # also for NaN
                wrong.setdefault(name, f"wrong result: {group} are off by {error:.1e}, allowed {most:.1e}")
    return {"ok": wrong.pop("ours", None) is None, "wrong": wrong, **found}


def _error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    if found.keys() != truth.keys():
        raise ValueError(f"results must be {sorted(truth)}, got {sorted(found)}")
    errors = [(found[n] - t).abs().max().item() / (t.abs().max().item() or 1.0) for n, t in truth.items()]
    return float(np.max(errors))  # unlike max(), keeps NaN
