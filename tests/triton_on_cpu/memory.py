"""The memory of a launch: its tensors, each in an address space of its own, and a record of who touched what.

A kernel gets addresses that no real memory has, 2 TiB apart, so that an address tells the tensor that it came
from however it was computed. They become real ones on access, after the bounds of the tensor were checked.

A pointer that a kernel turns into a number is the real address; turned back, in the same launch or a later
one, it stands for the same tensor, which must live then.

The record holds vector clocks. Two programs may touch the same element, one of them writing, only if a
release by the first and an acquire by the second lie between. One thread releases or acquires; for the others
of its program tl.debug_barrier must come before the release, and after the acquire.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
from torch import Tensor

_kept: dict[int, weakref.ref[Tensor]] = {}
_SPACE = 1 << 41  # bytes between the address spaces of two tensors; each begins in the middle of its own


class OutOfBoundsError(IndexError):
    """A kernel touched what lies outside the tensor that its pointer came from."""


class RaceError(RuntimeError):
    """Two programs, or two threads of one, touched the same element and nothing ordered them."""


class _Record:
    """Who wrote and read each element of one storage last, and when on their own clocks."""

    def __init__(self, elements: int, programs: int) -> None:
        self.writer = np.zeros(elements, np.int32)
        self.written = np.zeros(elements, np.int32)
        self.read = np.zeros((programs, elements), np.int32)


@dataclass(frozen=True)
class _Argument:
    name: str
    base: int  # the address that the kernel is given
    address: int  # the real one
    bytes: int  # from the first element to the end of the last
    storage: int
    record: _Record
    granule: int  # bytes of an element of the record


class Memory:
    """The tensors of one launch.

    Args:
        tensors: tensor arguments by name.
        programs: how many programs the launch has.
    """

    def __init__(self, tensors: dict[str, Tensor], programs: int) -> None:
        self._programs = programs
        self._arguments: list[_Argument] = []
        self._tensors: list[Tensor] = []
        storages: dict[int, list[Tensor]] = {}
        for tensor in tensors.values():
            storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self._granules = {storage: min(t.itemsize for t in same) for storage, same in storages.items()}
        self._records: dict[int, _Record] = {}
        for name, tensor in tensors.items():
            self._add(name, tensor)
        # What program p knows of q's clock; what it acquired since its last barrier; what it may release.
        self._known = np.eye(programs, dtype=np.int32)
        self._acquired = np.zeros((programs, programs), np.int32)
        self._releasable = np.zeros((programs, programs), np.int32)
        self._released: dict[int, np.ndarray] = {}

    def pointers(self) -> dict[str, int]:
        """The address that the kernel is given for each tensor."""
        return {argument.name: argument.base for argument in self._arguments}

    def address(self, pointer: int) -> int:
        """The real address of a tensor's first element, for a kernel to keep."""
        k = pointer // _SPACE - 1
        if pointer != self._arguments[k].base:
            raise ValueError(f"only a pointer to the first element of {self._arguments[k].name} may be kept")
        address = self._arguments[k].address
        _kept[address] = weakref.ref(self._tensors[k])
        return address

    def pointer(self, address: int) -> int:
        """The address that stands in this launch for what a kernel kept."""
        tensor = _kept[address]() if address in _kept else None
        if tensor is None:
            raise OutOfBoundsError(f"{address:#x} was kept from no tensor, or from one that is gone")
        for argument in self._arguments:
            if argument.address == address:
                return argument.base
        return self._add(f"kept{len(self._arguments)}", tensor).base

    def load(self, program: int, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> np.ndarray:
        """Real addresses for what a program reads."""
        return self._access(program, "load", pointers, mask, itemsize)

    def store(self, program: int, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> np.ndarray:
        """Real addresses for what a program writes."""
        return self._access(program, "store", pointers, mask, itemsize)

    def atomic(
        self,
        program: int,
        pointers: np.ndarray,
        mask: np.ndarray,
        itemsize: int,
        acquire: bool,
        release: bool,
    ) -> np.ndarray:
        """Real addresses for an atomic operation, which orders programs if it acquires or releases."""
        argument, offsets = self._locate("atomic", pointers, mask, itemsize)
        if argument is None:
            return pointers
        for address in (argument.address + offsets).tolist():
            before = self._released.get(address, np.zeros(self._programs, np.int32))
            if acquire:
                self._acquired[program] = np.maximum(self._acquired[program], before)
            if release:
                self._released[address] = np.maximum(before, self._releasable[program])
        return pointers + np.uint64(argument.address) - np.uint64(argument.base)

    def barrier(self, program: int) -> None:
        """The threads of a program have met: all know what one acquired, one may release what all did."""
        known = self._known[program]
        np.maximum(known, self._acquired[program], out=known)
        self._releasable[program] = known
        known[program] += 1

    def name(self, pointer: int, itemsize: int) -> str:
        """The tensor and the element that an address of a kernel stands for."""
        argument = self._arguments[pointer // _SPACE - 1]
        return f"{argument.name}[{(pointer - argument.base) // itemsize}]"

    def _add(self, name: str, tensor: Tensor) -> _Argument:
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, is on {tensor.device}")
        storage = tensor.untyped_storage().data_ptr()
        granule = self._granules.setdefault(storage, tensor.itemsize)
        if storage not in self._records:
            elements = -(-tensor.untyped_storage().nbytes() // granule)
            self._records[storage] = _Record(elements, self._programs)
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        bytes = (last + 1) * tensor.itemsize if tensor.numel() else 0
        base = (len(self._arguments) + 1) * _SPACE + _SPACE // 2
        self._arguments.append(
            _Argument(name, base, tensor.data_ptr(), bytes, storage, self._records[storage], granule)
        )
        self._tensors.append(tensor)
        return self._arguments[-1]

    def _access(
        self, program: int, kind: str, pointers: np.ndarray, mask: np.ndarray, itemsize: int
    ) -> np.ndarray:
        argument, offsets = self._locate(kind, pointers, mask, itemsize)
        if argument is None:
            return pointers
        record, known = argument.record, self._known[program]
        at = (offsets + (argument.address - argument.storage)) // argument.granule
        writer, written = record.writer[at], record.written[at]
        if kind == "load":
            # What this program wrote itself since its last barrier, another of its threads may have written.
            allowed = known[writer] - (writer == program)
            self._check(argument, program, kind, offsets, itemsize, "wrote", writer, written > allowed)
            record.read[program, at] = known[program]
        else:
            self._check(argument, program, kind, offsets, itemsize, "wrote", writer, written > known[writer])
            unseen = record.read[:, at] > known[:, None]
            self._check(argument, program, kind, offsets, itemsize, "read", unseen.argmax(0), unseen.any(0))
            record.writer[at], record.written[at] = program, known[program]
        return pointers + np.uint64(argument.address) - np.uint64(argument.base)

    def _locate(
        self, kind: str, pointers: np.ndarray, mask: np.ndarray, itemsize: int
    ) -> tuple[_Argument | None, np.ndarray]:
        """The tensor that an access goes to and the offsets in it, in bytes; none if all is masked out."""
        touched = pointers[np.broadcast_to(mask, pointers.shape)]
        if touched.size == 0:
            return None, touched
        space = int(touched[0]) // _SPACE - 1
        if not 0 <= space < len(self._arguments):
            raise OutOfBoundsError(
                f"{kind} at {int(touched[0]):#x}, which comes from no tensor of the launch"
            )
        argument = self._arguments[space]
        offsets = touched.astype(np.int64) - argument.base
        wrong = (offsets < 0) | (offsets > argument.bytes - itemsize)
        if wrong.any():
            raise OutOfBoundsError(
                f"{kind} of {argument.name}[{int(offsets[wrong][0]) // itemsize}], which spans "
                f"{argument.bytes // itemsize}; {int(wrong.sum())} elements of this access do not lie in it"
            )
        return argument, offsets

    def _check(
        self, argument: _Argument, program: int, kind: str, offsets: np.ndarray, itemsize: int, did: str,
        others: np.ndarray, wrong: np.ndarray,
    ) -> None:  # fmt: skip
        if wrong.any():
            first = int(wrong.argmax())
            raise RaceError(
                f"{kind} of {argument.name}[{int(offsets[first]) // itemsize}] by program {program}, which "
                f"program {int(others[first])} {did}, and nothing orders the two: tl.debug_barrier and a "
                "release after the first, an acquire and tl.debug_barrier before the second"
            )
