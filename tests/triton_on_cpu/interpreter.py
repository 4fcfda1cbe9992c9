"""Triton's interpreter with other arithmetic, memory and scheduling.

It rounds like the hardware: bfloat16 and TF32 products, casts to nearest even, float32 sums. Every access is
checked (memory.py), and programs run in an order that a seed decides (schedule.py). A launch with
launch_cooperative_grid=True has all of its programs resident, so that barriers between programs work.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton._C.libtriton import ir
from triton.language.extra import libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from . import arithmetic
from .memory import Memory
from .schedule import Poll, Schedule

_LIBDEVICE = {"tanh": np.tanh, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log1p": np.log1p}
_OPTIONS = {"num_warps", "num_stages", "num_ctas", "maxnreg"}
_PRODUCTS = {
    ir.INPUT_PRECISION.IEEE: np.matmul,
    ir.INPUT_PRECISION.TF32: arithmetic.tf32_product,
    ir.INPUT_PRECISION.TF32x3: arithmetic.tf32x3_product,
}
_ACQUIRE = {ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE}
_RELEASE = {ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE}
_seed = 0


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Launches in this context run their programs in the order that the seed gives."""
    global _seed
    before, _seed = _seed, seed
    try:
        yield
    finally:
        _seed = before


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _wide(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(arithmetic.bf16_to_f32(handle.data), tl.float32) if _is_bf16(handle) else handle


def _narrow(data: np.ndarray, dtype: tl.dtype) -> TensorHandle:
    """Data as computed, rounded to the dtype that it should have; a comparison's stays what it is."""
    if data.dtype == np.bool_:
        return TensorHandle(data, tl.int1)
    if dtype == tl.bfloat16:
        return TensorHandle(arithmetic.f32_to_bf16(data), dtype)
    return TensorHandle(data, dtype)


def _itemsize(handle: TensorHandle) -> int:
    return max(1, handle.get_element_ty().primitive_bitwidth // 8)


class _Builder(interpreter.InterpreterBuilder):
    """The operations of a kernel. The one builder that the interpreter has becomes one of these."""

    memory: Memory
    schedule: Schedule
    program: int

    # Arithmetic

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Callable) -> TensorHandle:
        return _narrow(super().binary_op(_wide(lhs), _wide(rhs), op).data, lhs.dtype.scalar)

    def ternary_op(
        self, lhs: TensorHandle, rhs: TensorHandle, other: TensorHandle, op: Callable
    ) -> TensorHandle:
        return _narrow(super().ternary_op(_wide(lhs), _wide(rhs), _wide(other), op).data, other.dtype.scalar)

    def unary_op(self, arg: TensorHandle, op: Callable) -> TensorHandle:
        return _narrow(op(_wide(arg).data), arg.dtype.scalar)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        x_, y_, z_ = (_wide(handle).data for handle in (x, y, z))
        exact = x_.astype(np.float64) * y_ + z_
        return _narrow(exact.astype(z_.dtype), z.dtype.scalar)

    def create_rsqrt(self, arg: TensorHandle) -> TensorHandle:
        return self.unary_op(arg, lambda x: (1 / np.sqrt(x)).astype(x.dtype))

    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        dtype = dst_type.scalar
        if dtype == tl.bfloat16:
            return _narrow(_wide(src).data.astype(np.float32), dtype)
        return super().cast_impl(_wide(src), dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: tl.dtype, rounding_mode: Any) -> TensorHandle:
        small = 8 in (src.dtype.scalar.primitive_bitwidth, dst_type.scalar.primitive_bitwidth)
        if small or rounding_mode == ir.ROUNDING_MODE.RTZ:
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        return self.cast_impl(src, dst_type)

    def get_bf16(self, value: float) -> TensorHandle:
        return _narrow(np.array([value], np.float32), tl.bfloat16)

    def create_dot(
        self, a: TensorHandle, b: TensorHandle, d: TensorHandle, input_precision: Any, *rest: Any
    ) -> TensorHandle:
        if not a.dtype.scalar.is_floating() or a.dtype.scalar.primitive_bitwidth == 8:
            return super().create_dot(a, b, d, input_precision, *rest)
        total = d.data.dtype if d.dtype.scalar == tl.float64 else np.dtype(np.float32)
        product = _PRODUCTS[input_precision] if a.dtype.scalar == tl.float32 else np.matmul
        data = product(*(np.asarray(_wide(x).data, total) for x in (a, b))) + _wide(d).data
        return _narrow(data.astype(_wide(d).data.dtype), d.dtype.scalar)

    # Memory

    def create_ptr_to_int(self, ptr: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        return TensorHandle(np.array([self.memory.address(int(ptr.data.item()))], np.int64), dst_type.scalar)

    def create_int_to_ptr(self, value: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        return TensorHandle(
            np.array([self.memory.pointer(int(value.data.item()))], np.uint64), dst_type.scalar
        )

    def create_masked_load(
        self, ptrs: TensorHandle, mask: TensorHandle, other: TensorHandle | None, *rest: Any
    ) -> TensorHandle:
        real = self.memory.load(self.program, ptrs.data, mask.data, _itemsize(ptrs))
        if other is None:
            # What a masked load returns is not defined unless the kernel says: NaN, or -1.
            dtype = interpreter._get_np_dtype(ptrs.get_element_ty())
            ones = np.full(ptrs.data.shape, -1, f"i{dtype.itemsize}")
            other = TensorHandle(ones.view(dtype), ptrs.get_element_ty())
        return super().create_masked_load(TensorHandle(real, ptrs.dtype), mask, other, *rest)

    def create_masked_store(
        self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> None:
        real = self.memory.store(self.program, ptrs.data, mask.data, _itemsize(ptrs))
        super().create_masked_store(TensorHandle(real, ptrs.dtype), value, mask, *rest)

    # Order

    def create_barrier(self, *_: Any) -> None:
        self.memory.barrier(self.program)

    def create_atomic_rmw(
        self, op: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        real = self._atomic(ptr, mask, sem, scope)
        old = super().create_atomic_rmw(op, real, val, mask, sem, scope)
        self._switch(ptr, real, old)
        return old

    def create_atomic_cas(
        self, ptr: TensorHandle, cmp: TensorHandle, val: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        real = self._atomic(ptr, TensorHandle(np.ones_like(ptr.data, bool), tl.int1), sem, scope)
        old = super().create_atomic_cas(real, cmp, val, sem, scope)
        self._switch(ptr, real, old)
        return old

    def _atomic(self, ptr: TensorHandle, mask: TensorHandle, sem: Any, scope: Any) -> TensorHandle:
        wide = scope != ir.MEM_SYNC_SCOPE.CTA
        real = self.memory.atomic(
            self.program,
            ptr.data,
            mask.data,
            _itemsize(ptr),
            wide and sem in _ACQUIRE,
            wide and sem in _RELEASE,
        )
        return TensorHandle(real, ptr.dtype)

    def _switch(self, ptr: TensorHandle, real: TensorHandle, old: TensorHandle) -> None:
        """Lets other programs run after an atomic operation that found old."""
        poll = None
        if ptr.data.size == 1:

            def read() -> float:
                mask = np.ones_like(real.data, bool)
                return interpreter._interpreter.load(
                    real.data, mask, np.zeros_like(old.data), old.data.dtype
                ).item()

            if read() == old.data.item():
                poll = Poll(self.memory.name(int(ptr.data.item()), _itemsize(ptr)), old.data.item(), read)
        self.schedule.switch(poll)


def _launch(self: Any, *args: Any, **kwargs: Any) -> None:
    """GridExecutor.__call__: binds the arguments and runs all programs."""
    together = kwargs.pop("launch_cooperative_grid", False)
    parameters = inspect.signature(self.fn).parameters
    unknown = kwargs.keys() - parameters.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"{self.fn.__name__} has no parameter {', '.join(sorted(unknown))}")
    arguments = inspect.getcallargs(self.fn, *args, **{k: v for k, v in kwargs.items() if k in parameters})
    grid = tuple(self.grid(arguments) if callable(self.grid) else self.grid)
    grid += (1,) * (3 - len(grid))
    places = list(itertools.product(*(range(n) for n in grid)))
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    _builder.memory = Memory(tensors, len(places))
    _builder.schedule = Schedule(len(places), _seed, together)
    _builder.set_grid_dim(*grid)
    given = {
        name: value if name in self.constexprs else interpreter._implicit_cvt(value)
        for name, value in arguments.items()
    }
    for name, pointer in _builder.memory.pointers().items():
        given[name].handle.data[0] = pointer

    def enter(program: int) -> None:
        _builder.program = program
        _builder.set_grid_idx(*places[program])

    scope = interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    try:
        with np.errstate(all="ignore"):
            _builder.schedule.run(lambda program: self.fn(**given), enter)
    finally:
        scope.restore()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """InterpretedFunction.__call__, a call inside a kernel: the launch has patched tl already."""
    return self.rewrite()(*args, **kwargs)


def _patch_tensor(tensor: type, scope: Any) -> None:
    _stock_patch_tensor(tensor, scope)
    # numpy 2.4 makes no int of an array with one element.
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _elementwise(function: Callable) -> Callable:
    def call(x: tl.tensor) -> tl.tensor:
        if x.dtype not in (tl.float32, tl.float64):
            raise TypeError(f"libdevice takes float32 and float64, got {x.dtype}")
        return tl.tensor(TensorHandle(function(x.handle.data), x.handle.dtype), x.type)

    return call


if not knobs.runtime.interpret:
    raise RuntimeError("triton_on_cpu needs TRITON_INTERPRET=1 in the environment before triton is imported")
_builder: Any = interpreter.interpreter_builder
_builder.__class__ = _Builder
# Assertions of kernels count. The check for overflows of int32 would not: shapes in tests are small.
_builder.options = interpreter.InterpreterOptions(debug=True, sanitize_overflow=False)
_stock_patch_tensor = interpreter._patch_lang_tensor
interpreter._patch_lang_tensor = _patch_tensor
interpreter.GridExecutor.__call__ = _launch
interpreter.InterpretedFunction.__call__ = _call
for _name, _function in _LIBDEVICE.items():
    setattr(libdevice, _name, _elementwise(_function))
