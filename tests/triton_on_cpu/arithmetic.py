"""Number formats that numpy lacks, and products in them: bfloat16, which is held as bits, and TF32."""

from __future__ import annotations

import numpy as np


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even."""
    bits = np.atleast_1d(np.ascontiguousarray(values, np.float32)).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded.reshape(np.shape(values))).astype(np.uint16)


def tf32(values: np.ndarray) -> np.ndarray:
    """The nearest float32 with 10 bits of mantissa, ties away from zero, as cvt.rna.tf32 rounds."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return _cut(bits + 0x1000)


def tf32_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Triton hands float32 to the matrix instructions as it is, and they ignore the lower 13 bits."""
    return np.matmul(*(_cut(np.ascontiguousarray(x).view(np.uint32)) for x in (a, b)))


def tf32x3_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Each factor as the sum of two TF32 numbers; the product of the small ones is left out."""
    small_a, small_b = a - tf32(a), b - tf32(b)
    return tf32_product(small_a, tf32(b)) + tf32_product(tf32(a), small_b) + tf32_product(tf32(a), tf32(b))


def _cut(bits: np.ndarray) -> np.ndarray:
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)
