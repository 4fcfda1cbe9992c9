"""Runs CUDA kernels on the CPU: the real sources under g++, with shim.h in place of the hardware."""

from __future__ import annotations

from .backend import install
from .build import build, build_module, guarded, missing

__all__ = ["build", "build_module", "guarded", "install", "missing"]
