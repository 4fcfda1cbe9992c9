// Instructions of a whole warp: computed once, when its last lane arrives.
#pragma once
#include <bit>

#include "machine.h"

namespace fusedlstm::gpu::shim {

inline void collective(void (*operation)(Warp&), const Operands& operands) {
  Thread& t = *current;
  Warp& warp = *t.warp;
  if (warp.size != 32) fault("warp divergence: the block's last warp has %d threads", warp.size);
  if (!warp.arrived) {
    warp.operation = operation;
    warp.where = t.where;
  } else if (warp.operation != operation || warp.where.line() != t.where.line()) {
    fault("warp divergence: other lanes of the warp are at another instruction, at %s:%u", warp.where.file_name(),
          warp.where.line());
  }
  warp.lanes[t.number % 32] = &operands;
  if (++warp.arrived < 32) return wait(Wait::collective);
  operation(warp);
  warp.arrived = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (&warp.threads[lane] != &t) set_wait(warp.threads[lane], Wait::none);
}

inline float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float from_bf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

inline float from_fp16(uint32_t bits) {
  const uint32_t magnitude = (bits & 0x7FFF) << 13;
  const float value = std::bit_cast<float>(magnitude) * 0x1p112f;  // moves the exponent's bias; exact, subnormals too
  const uint32_t special = (bits & 0x7C00) == 0x7C00 ? 0x7F800000 | magnitude : std::bit_cast<uint32_t>(value);
  return std::bit_cast<float>(special | (bits & 0x8000) << 16);
}

// d [16, 8] += a [16, K] b [K, 8], K elements of 32 / K bytes; see primitives.cuh for which lane has what.
template <int K, float (*from_bits)(uint32_t)>
void multiply(Warp& warp) {
  typedef float Row __attribute__((vector_size(32)));
  constexpr int kPerWord = K / 8;
  float a[16][K];
  Row b[K], d[16];
  for (int lane = 0; lane < 32; ++lane) {
    const int q = lane / 4, t = lane % 4;
    const Operands& o = *warp.lanes[lane];
    for (int e = 0; e < kPerWord; ++e) {
      const auto element = [e](uint32_t word) { return from_bits(kPerWord == 1 ? word : word >> (16 * e) & 0xFFFF); };
      for (int i = 0; i < 4; ++i) a[q + i % 2 * 8][(t + i / 2 * 4) * kPerWord + e] = element(o.a[i]);
      for (int i = 0; i < 2; ++i) b[(t + i * 4) * kPerWord + e][q] = element(o.b[i]);
    }
    for (int i = 0; i < 4; ++i) d[q + i / 2 * 8][2 * t + i % 2] = o.d[i];
  }
  for (int row = 0; row < 16; ++row) {
    Row sum = d[row];
    for (int k = 0; k < K; ++k) sum += a[row][k] * b[k];
    d[row] = sum;
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) warp.lanes[lane]->d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

inline void load_matrices(Warp& warp) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const void* row = warp.lanes[matrix * 8 + lane / 4]->row;
      memcpy(&warp.lanes[lane]->r[matrix], static_cast<const unsigned char*>(row) + lane % 4 * 4, 4);
    }
}

inline void check_tf32(const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t operands[] = {a[0], a[1], a[2], a[3], b0, b1};
  for (uint32_t bits : operands)
    if (bits & 0x1FFF) fault("operand not rounded: %08x has more bits than TF32", bits);
}

}  // namespace fusedlstm::gpu::shim
