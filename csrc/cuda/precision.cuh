// How numbers are stored and multiplied. A word is 4 bytes of an operand: two 16-bit numbers or one of 32 bits; a step
// of a matrix product along K takes 8 words, whatever they hold.
#pragma once
#include "primitives.cuh"

namespace fusedlstm::gpu {

FUSEDLSTM_DEVICE float as_float(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } both = {bits};
  return both.f;
}

FUSEDLSTM_DEVICE uint32_t as_bits(float value) {
  union {
    float f;
    uint32_t u;
  } both;
  both.f = value;
  return both.u;
}

struct Bf16 {
  using E = __nv_bfloat16;
  static FUSEDLSTM_DEVICE float load(E v) { return __bfloat162float(v); }
  static FUSEDLSTM_DEVICE E store(float v) { return __float2bfloat16(v); }
  static FUSEDLSTM_DEVICE E operand(E v) { return v; }
  static FUSEDLSTM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_bf16(d, a, b0, b1);
  }
};

struct Fp16 {
  using E = __half;
  static FUSEDLSTM_DEVICE float load(E v) { return __half2float(v); }
  static FUSEDLSTM_DEVICE E store(float v) { return __float2half(v); }
  static FUSEDLSTM_DEVICE E operand(E v) { return v; }
  static FUSEDLSTM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_fp16(d, a, b0, b1);
  }
};

struct Fp32 {
  using E = float;
  static FUSEDLSTM_DEVICE float load(E v) { return v; }
  static FUSEDLSTM_DEVICE E store(float v) { return v; }
};

// float32 whose products are of 10 bits of mantissa: operands are rounded when they are made.
struct Tf32 : Fp32 {
  static FUSEDLSTM_DEVICE E operand(E v) { return as_float(round_tf32(v)); }
  static FUSEDLSTM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_tf32(d, a, b0, b1);
  }
};

// float32 whose operands are sums of two TF32 numbers; the product of both small parts is left out.
struct Tf32x3 : Fp32 {
  static FUSEDLSTM_DEVICE E operand(E v) { return v; }
  static FUSEDLSTM_DEVICE uint32_t rest(uint32_t all, uint32_t large) {
    return round_tf32(as_float(all) - as_float(large));
  }
  static FUSEDLSTM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t large[4], small[4];
    for (int k = 0; k < 4; ++k) {
      large[k] = round_tf32(as_float(a[k]));
      small[k] = rest(a[k], large[k]);
    }
    const uint32_t large0 = round_tf32(as_float(b0)), large1 = round_tf32(as_float(b1));
    mma_tf32(d, small, large0, large1);
    mma_tf32(d, large, rest(b0, large0), rest(b1, large1));
    mma_tf32(d, large, large0, large1);
  }
};

// Gates and states, for cell.h. Stable at both ends: exp runs into 0 or infinity, its reciprocal follows.
template <class Precision>
struct CellMath {
  static constexpr bool HALF = sizeof(typename Precision::E) == 2;
  static FUSEDLSTM_DEVICE float sigmoid(float x) {
    return HALF ? divide_fast(1.0f, 1.0f + exp_fast(-x)) : 1.0f / (1.0f + expf(-x));
  }
  static FUSEDLSTM_DEVICE float tanh(float x) {
    return HALF ? 1.0f - divide_fast(2.0f, 1.0f + exp_fast(2.0f * x)) : tanhf(x);
  }
};

}  // namespace fusedlstm::gpu
