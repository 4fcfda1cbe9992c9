"""How ids are read: side by side in streams, with only a stretch of a long text in memory at a time."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

WINDOW = 2**23  # ids kept on the device, in all streams together; a text of that many is there as a whole
BLOCK = 2**20  # ids counted at a time


class Streams:
    """B contiguous stretches of a text, read side by side; the id after a stretch is its last target.

    Args:
        ids: the text [N], or streams that a split has cut [B, n + 1], which with another B are one text, end
            to end; uint8 or uint16.
        B: stretches, at most N - 1.
        device: of the chunks; the ids lie there too, in their own type.
        rows: which of the streams are read, B' of them: one process's part, or one part of a batch.

    Raises:
        ValueError: when the ids cannot fill B streams.
    """

    def __init__(
        self, ids: np.ndarray, B: int, device: str | torch.device = "cpu", rows: slice = slice(None)
    ) -> None:
        if ids.ndim == 1 or len(ids) != B:
            ids = ids.ravel()
            n = (len(ids) - 1) // B
            if n < 1:
                raise ValueError(f"B must be at most {len(ids) - 1}, which the text can fill, got {B}")
            ids = sliding_window_view(ids, n + 1)[::n][:B]
        self.n = ids.shape[1] - 1  # inputs in each stream
        self.streams = ids[rows]  # [B', n + 1]
        self.device = device
        self.start, self.window = 0, torch.empty(0)  # what is in memory: from which step on, [steps + 1, B']

    def chunk(self, start: int, T: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [T, B'] int64 from one position on (fewer steps at the end of the streams)."""
        end = min(start + T, self.n)
        if start < self.start or end - self.start >= len(self.window):
            self._read(start, T)
        rows = self.window[start - self.start : end + 1 - self.start].long()
        return rows[:-1], rows[1:]

    def chunks(self, T: int, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The streams in order, T steps at a time; all of them, or until so many steps are done."""
        return (self.chunk(start, T) for start in range(0, min(self.n, steps or self.n), T))

    def _read(self, start: int, T: int) -> None:
        steps = max(T, WINDOW // len(self.streams))
        lent = self.streams[:, start : start + steps + 1]
        stretch = np.empty(lent.shape, lent.dtype)
        for b, row in enumerate(lent):
            stretch[b] = row
            let_go(row)
        self.start, self.window = start, torch.from_numpy(stretch).to(self.device).T.contiguous()


def fit(ids: np.ndarray, B: int, T: int) -> tuple[int, int]:
    """The largest batch, then length, up to B and T that ids can fill once; 0 and 0 where they fill none.

    Args:
        ids: as Streams takes them.
    """
    if ids.ndim == 2:
        return len(ids), min(T, ids.shape[1] - 1)
    T = min(T, len(ids) - 1)
    return (min(B, (len(ids) - 1) // T), T) if T > 0 else (0, 0)


def counts(ids: np.ndarray, V: int) -> np.ndarray:
    """How often each id occurs [V], int64.

    Args:
        ids: as Streams takes them.
    """
    found = np.zeros(V, np.int64)
    for row in np.atleast_2d(ids):
        for start in range(0, len(row), BLOCK):
            found += np.bincount(row[start : start + BLOCK], minlength=V)
            let_go(ids)
    return found


def let_go(ids: np.ndarray) -> None:
    """Takes the pages of a mapped file out of this process's memory; the system keeps what it has room for.

    Without it all that was ever read of a text counts as the process's memory.
    """
    owner: Any = ids
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    if owner is not None:
        owner.madvise(mmap.MADV_DONTNEED)
