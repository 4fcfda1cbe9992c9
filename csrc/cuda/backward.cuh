// The backward recurrence of one layer: gradients of the pre-activations from the last step to the first.
//
//   dh_t = dy_t + dh       [di df dg do], dc: ../cell.h       dh <- [di df dg do] W_hh
//
// The same blocks own the same cells as in the forward. A block multiplies the gate gradients of its own units with its
// own rows of W_hh, which gives a piece of dh for every unit of the tile; each piece goes to the block that owns the
// unit and is added there in a fixed order (exchange.cuh). W_hh^T is the first operand: matrix tile m has hidden units
// 16 m and following, K is 4 * units. A warp keeps M_REGISTERS tiles in registers, others in shared memory.
#pragma once
#include "../cell.h"
#include "exchange.cuh"
#include "forward.cuh"

namespace fusedlstm::gpu {

template <class Exchange>
FUSEDLSTM_INLINE BackwardShared backward_shared(const Sizes& n, int number_bytes, int M_REGISTERS, int KS,
                                                int k_splits) {
  BackwardShared s = {};
  const int groups = n.units / 8, warps = groups * KS, rows = warps / k_splits;
  const int tiles = ((n.slices * groups + 1) / 2 + rows - 1) / rows,
            k_steps = 4 * n.units * number_bytes / 32 / k_splits;
  s.dgates_row = padded_bytes(4 * n.units * number_bytes);
  s.dgates_buffer = TILE * s.dgates_row;
  s.pieces = ceil_to(Exchange::DGATES_BUFFERS * s.dgates_buffer, 16);
  s.sums = s.pieces + Exchange::PIECE_BUFFERS * Exchange::sources(n, k_splits) * groups * 512;
  s.weights = s.sums + (Exchange::SUMS ? groups * KS * 512 : 0);
  s.bars = s.weights + (tiles > M_REGISTERS ? tiles - M_REGISTERS : 0) * k_steps * warps * 512;
  s.bytes = s.bars + 16;
  return s;
}

template <class Precision, template <class> class ExchangeOf, int M_REGISTERS, int K_STEPS, int KS, int THREADS>
FUSEDLSTM_KERNEL(THREADS)
lstm_backward_kernel(BackwardArgs a) {
  using E = typename Precision::E;
  using Exchange = ExchangeOf<Precision>;
  constexpr int MINE = PER_WARP<KS>;
  if constexpr (Exchange::CLUSTER && !HAS_CLUSTERS) return;
  const Sizes& n = a.sizes;
  const Place me(n, KS);
  const BackwardShared at = backward_shared<Exchange>(n, sizeof(E), M_REGISTERS, KS, a.k_splits);
  unsigned char* shared = dynamic_shared();
  const int H = n.H, warps = blockDim.x / 32, groups = n.units / 8;
  const bool owner = me.split * MINE < PAIRS;

  // W_hh^T: which matrix tiles of which part of K are this warp's.
  const int rows = warps / a.k_splits, k_split = me.warp / rows, first_m = me.warp % rows;
  const int m_count = (n.slices * groups + 1) / 2;
  const int k_steps = 4 * n.units * int(sizeof(E)) / 32 / a.k_splits;
  auto weights = [&](int m, int k_step, uint32_t (&fragment)[4]) {
    for (int r = 0; r < 4; ++r) {
      const int k = m * 16 + me.q + r % 2 * 8, word = (k_split * k_steps + k_step) * 8 + me.t + r / 2 * 4;
      const int row = word * int(4 / sizeof(E)), gate = row / n.units, unit = row % n.units;
      const int there = n.units < H - me.u0 ? n.units : H - me.u0;
      const E* column = static_cast<const E*>(a.w_hh) + ((int64_t(me.d) * 4 + gate) * H + me.u0) * H + k;
      fragment[r] = operand_word<Precision>(column, H, unit, k < H ? there : 0);
    }
  };
  uint32_t w[M_REGISTERS][K_STEPS][4];
#pragma unroll
  for (int j = 0; j < M_REGISTERS; ++j)
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k)
      if (first_m + j * rows < m_count && k < k_steps) weights(first_m + j * rows, k, w[j][k]);
  uint4* kept = reinterpret_cast<uint4*>(shared + at.weights) + me.warp * 32 + me.lane;
  for (int j = M_REGISTERS; first_m + j * rows < m_count; ++j)
    for (int k = 0; k < k_steps; ++k) {
      uint32_t fragment[4];
      weights(first_m + j * rows, k, fragment);
      kept[((j - M_REGISTERS) * k_steps + k) * warps * 32] =
          make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
    }

  const int64_t states = (int64_t(me.d) * n.B + me.b0) * H;
  unsigned valid = 0;  // a bit for each pair that is not padding
  float dh[MINE], dc[MINE], c[MINE];
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    const int b = me.column(me.split * MINE + i);
    const bool there = owner && me.b0 + b < n.B && me.unit < H;
    const int64_t state = states + int64_t(b) * H + me.unit;
    valid |= unsigned(there) << i;
    dh[i] = there && a.dh_n ? Precision::load(static_cast<const E*>(a.dh_n)[state]) : 0.0f;
    dc[i] = there && a.dc_n ? Precision::load(static_cast<const E*>(a.dc_n)[state]) : 0.0f;
  }

  // What the forward saved for a step: c_before is what it started from, so it is the c of the step that comes next
  // here.
  struct Saved {
    E gates[MINE][4], dy[MINE];
    float c_before[MINE];
    unsigned live, fresh;  // a bit for each pair
  };
  auto load = [&](Rows here, Rows before, Saved& x) {
    x.live = x.fresh = 0;
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const int column = me.column(me.split * MINE + i), b = me.b0 + column;
      if (!(valid >> i & 1)) continue;
      // Also for a sequence that ended before this step: its last one comes next.
      x.c_before[i] = b < before.alive
                          ? a.c[(me.d * n.N + before.start + b) * H + me.unit]
                          : Precision::load(static_cast<const E*>(a.c0)[states + int64_t(column) * H + me.unit]);
      if (b >= here.alive) continue;
      x.live |= 1u << i;
      x.fresh |= unsigned(is_fresh(n, me.d, here, b)) << i;
      const int64_t row = here.start + b;
      const E* gates = static_cast<const E*>(a.gates) + (me.d * n.N + row) * 4 * H + me.unit;
      for (int g = 0; g < 4; ++g) x.gates[i][g] = gates[int64_t(g) * H];
      x.dy[i] = a.dy ? static_cast<const E*>(a.dy)[row * n.D * H + me.d * H + me.unit] : Precision::store(0.0f);
    }
  };
  Exchange exchange(n, a.mail, me, shared, at, a.k_splits);
  Rows now = rows_of(n, me.d, n.T - 1), before = rows_of(n, me.d, n.T - 2);
  Saved x;
  load(now, before, x);
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    const int64_t row = me.d * n.N + now.start + me.b0 + me.column(me.split * MINE + i);
    c[i] = x.live >> i & 1 ? a.c[row * H + me.unit] : 0.0f;
  }

  for (int64_t k = 0; k < n.T; ++k) {
    const Rows before_that = rows_of(n, me.d, n.T - 3 - k);
    unsigned char* operand = shared + at.dgates + k % Exchange::DGATES_BUFFERS * at.dgates_buffer;
    if (owner)
#pragma unroll
      for (int i = 0; i < MINE; ++i) {
        const int column = me.column(me.split * MINE + i);
        E dgates[4] = {Precision::store(0.0f), Precision::store(0.0f), Precision::store(0.0f), Precision::store(0.0f)};
        if (x.live >> i & 1) {
          const bool fresh = x.fresh >> i & 1;
          const Gates<float> gates = {Precision::load(x.gates[i][0]), Precision::load(x.gates[i][1]),
                                      Precision::load(x.gates[i][2]), Precision::load(x.gates[i][3])};
          const Gates<float> d = cell_backward<CellMath<Precision>>(gates, fresh ? 0.0f : x.c_before[i], c[i],
                                                                    dh[i] + Precision::load(x.dy[i]), dc[i]);
          const float all[4] = {d.i, d.f, d.g, d.o};
          E* out = static_cast<E*>(a.dgates) + (me.d * n.N + now.start + me.b0 + column) * 4 * H + me.unit;
          for (int g = 0; g < 4; ++g) {
            dgates[g] = Precision::store(all[g]);
            out[int64_t(g) * H] = dgates[g];
          }
          if (fresh) dc[i] = 0.0f;
        }
        E* row = reinterpret_cast<E*>(operand + column * at.dgates_row);
        for (int g = 0; g < 4; ++g) row[g * n.units + me.group * 8 + me.q] = Precision::operand(dgates[g]);
      }
    sync_threads();
    const unsigned was_live = x.live, was_fresh = x.fresh;
#pragma unroll
    for (int i = 0; i < MINE; ++i) c[i] = x.c_before[i];
    load(before, before_that, x);

    auto send = [&](int m, const float (&sum)[COLUMNS][4]) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (2 * m + half < n.slices * groups)
          exchange.send(k, k_split, 2 * m + half,
                        make_float4(sum[0][2 * half], sum[0][2 * half + 1], sum[1][2 * half], sum[1][2 * half + 1]));
    };
    auto multiply = [&](float (&sum)[COLUMNS][4], const uint32_t (&first)[4], const uint32_t (&b)[4]) {
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column)
        Precision::mma(sum[column], first, b[2 * column], b[2 * column + 1]);
    };
    float sum[M_REGISTERS][COLUMNS][4] = {};
#pragma unroll
    for (int step = 0; step < K_STEPS; ++step)
      if (step < k_steps) {
        uint32_t b[4];
        load_b(b, operand, at.dgates_row, k_split * k_steps + step, me.lane);
#pragma unroll
        for (int j = 0; j < M_REGISTERS; ++j)
          if (first_m + j * rows < m_count) multiply(sum[j], w[j][step], b);
      }
#pragma unroll
    for (int j = 0; j < M_REGISTERS; ++j)
      if (first_m + j * rows < m_count) send(first_m + j * rows, sum[j]);
    for (int j = M_REGISTERS; first_m + j * rows < m_count; ++j) {
      float one[COLUMNS][4] = {};
      for (int step = 0; step < k_steps; ++step) {
        uint32_t b[4];
        load_b(b, operand, at.dgates_row, k_split * k_steps + step, me.lane);
        const uint4 v = kept[((j - M_REGISTERS) * k_steps + step) * warps * 32];
        multiply(one, {v.x, v.y, v.z, v.w}, b);
      }
      send(first_m + j * rows, one);
    }

    float dh_before[MINE];
    exchange.template gather<KS>(k, dh_before);
#pragma unroll
    for (int i = 0; i < MINE; ++i)
      if (was_live >> i & 1) dh[i] = was_fresh >> i & 1 ? 0.0f : dh_before[i];
    now = before;
    before = before_that;
  }

#pragma unroll
  for (int i = 0; i < MINE; ++i)
    if (valid >> i & 1) {
      const int64_t state = states + int64_t(me.column(me.split * MINE + i)) * H + me.unit;
      static_cast<E*>(a.dh0)[state] = Precision::store(dh[i]);
      static_cast<E*>(a.dc0)[state] = Precision::store(dc[i]);
    }
}

}  // namespace fusedlstm::gpu
