// The forward recurrence of one layer. In the order in which a direction walks:
//
//   [i f g o] = act(gx_t + bias + h W_hh^T)       c_t, h_t: ../cell.h
//
// A block keeps its 4 * units rows of W_hh for all T steps: as the first operand of matrix instructions, in registers
// as far as these go (K_REGISTERS steps along K), the rest in shared memory as registers would have it. h of the whole
// tile is the second operand, in shared memory; c stays in registers. Sums, c and gates are float32. Rows of a warp's
// two matrix tiles are gates (i, f) and (g, o) of 8 units, so that a lane receives all four gates of its cells. The KS
// warps of a group each take a part of K; their sums are added in a fixed order. How h gets from the blocks that made
// it to those that need it is the Exchange's affair (exchange.cuh).
#pragma once
#include "../cell.h"
#include "exchange.cuh"

namespace fusedlstm::gpu {

template <class Exchange>
FUSEDLSTM_INLINE ForwardShared forward_shared(const Sizes& n, int number_bytes, int K_REGISTERS, int KS) {
  ForwardShared s = {};
  const int width = n.slices * n.units * number_bytes, groups = n.units / 8;
  const int k_steps = width / 32 / KS, kept = k_steps > K_REGISTERS ? k_steps - K_REGISTERS : 0;
  s.h_row = padded_bytes(width);
  s.h_buffer = TILE * s.h_row;
  s.stage = s.h + Exchange::H_BUFFERS * s.h_buffer;
  s.stage_row = n.units * number_bytes;
  s.sums = ceil_to(s.stage + Exchange::STAGES * TILE * s.stage_row, 16);
  s.weights = s.sums + (KS > 1 ? groups * PAIRS * KS * 32 * 16 : 0);
  s.bars = s.weights + kept * 2 * groups * KS * 32 * 16;
  s.bytes = s.bars + 16;
  return s;
}

template <class Precision, template <class> class ExchangeOf, int K_REGISTERS, int KS, int THREADS>
FUSEDLSTM_KERNEL(THREADS)
lstm_forward_kernel(ForwardArgs a) {
  using E = typename Precision::E;
  using Exchange = ExchangeOf<Precision>;
  using Math = CellMath<Precision>;
  constexpr int MINE = PER_WARP<KS>;
  if constexpr (Exchange::CLUSTER && !HAS_CLUSTERS) return;
  const Sizes& n = a.sizes;
  const Place me(n, KS);
  const ForwardShared at = forward_shared<Exchange>(n, sizeof(E), K_REGISTERS, KS);
  unsigned char* shared = dynamic_shared();
  const int H = n.H, warps = blockDim.x / 32, k_steps = n.slices * n.units * int(sizeof(E)) / 32 / KS;
  const bool owner = me.split * MINE < PAIRS;  // with more warps than pairs some only multiply

  // W_hh: matrix tile m has gate 2m of unit q in row q, gate 2m + 1 in row q + 8.
  uint32_t w[K_REGISTERS][2][4];
  uint4* kept = reinterpret_cast<uint4*>(shared + at.weights) + me.warp * 32 + me.lane;
  auto weights = [&](int k_step, int m, uint32_t (&fragment)[4]) {
    for (int r = 0; r < 4; ++r) {
      const int gate = 2 * m + r % 2, word = (me.split * k_steps + k_step) * 8 + me.t + r / 2 * 4;
      const E* row = static_cast<const E*>(a.w_hh) + ((int64_t(me.d) * 4 + gate) * H + me.unit) * H;
      fragment[r] = operand_word<Precision>(row, 1, word * int(4 / sizeof(E)), me.unit < H ? H : 0);
    }
  };
#pragma unroll
  for (int k = 0; k < K_REGISTERS; ++k)
#pragma unroll
    for (int m = 0; m < 2; ++m)
      if (k < k_steps) weights(k, m, w[k][m]);
  for (int k = K_REGISTERS; k < k_steps; ++k)
    for (int m = 0; m < 2; ++m) {
      uint32_t fragment[4];
      weights(k, m, fragment);
      kept[((k - K_REGISTERS) * 2 + m) * warps * 32] = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
    }

  // The states. A pair beyond the sequences or the hidden units is never alive, and its h stays 0.
  const int64_t states = (int64_t(me.d) * n.B + me.b0) * H;
  Rows now = rows_of(n, me.d, 0), next = rows_of(n, me.d, 1);
  float c[MINE], h[MINE], bias[4];
  for (int g = 0; g < 4; ++g) bias[g] = a.bias && me.unit < H ? a.bias[(me.d * 4 + g) * H + me.unit] : 0.0f;
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    const int b = me.column(me.split * MINE + i);
    const bool valid = owner && me.b0 + b < n.B && me.unit < H;
    const bool fresh = is_fresh(n, me.d, now, me.b0 + b);
    h[i] = valid ? Precision::load(static_cast<const E*>(a.h0)[states + int64_t(b) * H + me.unit]) : 0.0f;
    c[i] = valid && !fresh ? Precision::load(static_cast<const E*>(a.c0)[states + int64_t(b) * H + me.unit]) : 0.0f;
  }
  for (int k = threadIdx.x; k < TILE * n.slices * n.units; k += blockDim.x) {
    const int b = k / (n.slices * n.units), u = k % (n.slices * n.units);
    const bool there = me.b0 + b < n.B && u < H && !is_fresh(n, me.d, now, me.b0 + b);
    const E value = there ? static_cast<const E*>(a.h0)[states + int64_t(b) * H + u] : Precision::store(0.0f);
    reinterpret_cast<E*>(shared + at.h + b * at.h_row)[u] = Precision::operand(value);
  }
  Exchange exchange(n, a.mail, me, shared, at);
  sync_threads();

  // Where the gates' inputs of a pair lie, or null if it is not alive.
  auto input = [&](Rows rows, int i) -> const E* {
    const int b = me.b0 + me.column(me.split * MINE + i);
    if (!owner || b >= rows.alive || me.unit >= H) return nullptr;
    const int64_t row = a.ids ? a.ids[rows.start + b] : rows.start + b;
    return static_cast<const E*>(a.gx) + me.d * a.gx_stride + row * 4 * H + me.unit;
  };

  for (int64_t s = 0; s < n.T; ++s) {
    // Inputs come from L2 while h is waited for and multiplied; those of the next step are on their way there.
    E x[MINE][4];
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const E* here = input(now, i);
      for (int g = 0; g < 4; ++g) x[i][g] = here ? here[int64_t(g) * H] : Precision::store(0.0f);
      if (const E* there = input(next, i))
        for (int g = 0; g < 4; ++g) prefetch_to_l2(there + int64_t(g) * H);
    }
    const unsigned char* operand = exchange.wait(s);
    float sum[2][COLUMNS][4] = {};
    auto multiply = [&](int k, const uint32_t (&first)[4], const uint32_t (&second)[4]) {
      uint32_t b[4];
      load_b(b, operand, at.h_row, me.split * k_steps + k, me.lane);
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
        Precision::mma(sum[0][column], first, b[2 * column], b[2 * column + 1]);
        Precision::mma(sum[1][column], second, b[2 * column], b[2 * column + 1]);
      }
    };
#pragma unroll
    for (int k = 0; k < K_REGISTERS; ++k)
      if (k < k_steps) multiply(k, w[k][0], w[k][1]);
    for (int k = K_REGISTERS; k < k_steps; ++k) {
      const uint4 first = kept[(k - K_REGISTERS) * 2 * warps * 32],
                  second = kept[((k - K_REGISTERS) * 2 + 1) * warps * 32];
      multiply(k, {first.x, first.y, first.z, first.w}, {second.x, second.y, second.z, second.w});
    }

    // The pairs of this warp, from all warps of the group.
    Gates<float> z[MINE];
#pragma unroll
    for (int p = 0; p < PAIRS; ++p)
      if (p / MINE == me.split)
        z[p % MINE] = {sum[0][p / 2][p % 2], sum[0][p / 2][2 + p % 2], sum[1][p / 2][p % 2], sum[1][p / 2][2 + p % 2]};
    if constexpr (KS > 1) {
      float4* sums = reinterpret_cast<float4*>(shared + at.sums) + me.group * PAIRS * KS * 32 + me.lane;
#pragma unroll
      for (int p = 0; p < PAIRS; ++p)
        if (p / MINE != me.split)
          sums[(p * KS + me.split) * 32] = make_float4(sum[0][p / 2][p % 2], sum[0][p / 2][2 + p % 2],
                                                       sum[1][p / 2][p % 2], sum[1][p / 2][2 + p % 2]);
      sync_some(1 + me.group, 32 * KS);
      if (owner)
#pragma unroll
        for (int i = 0; i < MINE; ++i)
          for (int other = 1; other < KS; ++other) {
            const int from = (me.split + other) % KS;
            const float4 part = sums[((me.split * MINE + i) * KS + from) * 32];
            z[i] = {z[i].i + part.x, z[i].f + part.y, z[i].g + part.z, z[i].o + part.w};
          }
    }

    float c_saved[MINE];
    bool live[MINE];
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const int column = me.column(me.split * MINE + i), b = me.b0 + column;
      live[i] = owner && b < now.alive && me.unit < H;
      z[i].i += Precision::load(x[i][0]) + bias[0], z[i].f += Precision::load(x[i][1]) + bias[1];
      z[i].g += Precision::load(x[i][2]) + bias[2], z[i].o += Precision::load(x[i][3]) + bias[3];
      float c_t = c[i];
      cell_state<Math>(z[i], c_t);
      if (live[i]) h[i] = Precision::load(Precision::store(cell_output<Math>(z[i].o, c_t)));
      c_saved[i] = live[i] ? c_t : c[i];
      const bool fresh = is_fresh(n, me.d, next, b);
      c[i] = fresh ? 0.0f : c_saved[i];
      if (owner)
        exchange.put(s, column, me.group * 8 + me.q, Precision::operand(Precision::store(fresh ? 0.0f : h[i])));
    }
    exchange.give(s);

    // What nobody waits for.
#pragma unroll
    for (int i = 0; i < MINE; ++i)
      if (live[i]) {
        const int64_t row = now.start + me.b0 + me.column(me.split * MINE + i);
        static_cast<E*>(a.y)[row * n.D * H + me.d * H + me.unit] = Precision::store(h[i]);
        if (a.c) {
          a.c[(me.d * n.N + row) * H + me.unit] = c_saved[i];
          E* gates = static_cast<E*>(a.gates) + (me.d * n.N + row) * 4 * H + me.unit;
          gates[0] = Precision::store(z[i].i), gates[H] = Precision::store(z[i].f);
          gates[2 * H] = Precision::store(z[i].g), gates[3 * H] = Precision::store(z[i].o);
        }
      }
    now = next;
    next = rows_of(n, me.d, s + 2);
  }

#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    const int b = me.column(me.split * MINE + i);
    if (owner && me.b0 + b < n.B && me.unit < H) {
      static_cast<E*>(a.h_n)[states + int64_t(b) * H + me.unit] = Precision::store(h[i]);
      static_cast<E*>(a.c_n)[states + int64_t(b) * H + me.unit] = Precision::store(c[i]);
    }
  }
}

}  // namespace fusedlstm::gpu
