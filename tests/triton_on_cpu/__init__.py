"""Runs Triton kernels on CPU tensors, close to what a GPU computes, and stricter about memory and order.

Triton's own interpreter, with its arithmetic, memory and scheduling replaced. Importing this package replaces
them. TRITON_INTERPRET=1 must be set before triton is imported.
"""

from __future__ import annotations

from .interpreter import seeded
from .memory import OutOfBoundsError, RaceError
from .schedule import DeadLockError

__all__ = ["DeadLockError", "OutOfBoundsError", "RaceError", "seeded"]
