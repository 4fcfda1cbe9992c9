// Who computes what. A group of KS warps owns the cells of 8 hidden units and TILE sequences of a direction: lane
// (q, t) = (lane / 4, lane % 4) has unit q and sequences column(p) = 8 (p / 2) + 2 t + p % 2, as the result of a matrix
// instruction lies; of these pairs p each warp of the group finishes PER_WARP.
#pragma once
#include "../cell.h"
#include "arguments.h"
#include "precision.cuh"

namespace fusedlstm::gpu {

constexpr int PAIRS = TILE / 4;    // of a lane, before its group shares them
constexpr int COLUMNS = TILE / 8;  // matrix tiles side by side
static_assert(COLUMNS == 2, "fragments go around as four floats a lane");

template <int KS>
constexpr int PER_WARP = KS < PAIRS ? PAIRS / KS : 1;

struct Place {
  int slice, tile, d;    // of the block
  int warp, lane, q, t;  // of the thread
  int group, split;      // of the warp: which 8 units of the block; which of the group's warps
  int b0, u0;            // first sequence and first hidden unit of the block
  int unit;              // of the lane

  FUSEDLSTM_DEVICE Place(const Sizes& n, int KS) {
    slice = blockIdx.x, tile = n.first_tile + blockIdx.y, d = blockIdx.z;
    warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane / 4, t = lane % 4;
    group = warp / KS, split = warp % KS;
    b0 = tile * TILE, u0 = slice * n.units;
    unit = u0 + group * 8 + q;
  }
  // Sequence of the block that the pair is of.
  FUSEDLSTM_DEVICE int column(int p) const { return p / 2 * 8 + 2 * t + p % 2; }
};

// The rows of one step of a direction: row = start + b for b < alive.
struct Rows {
  int64_t start;
  int alive;
};

// The s-th step in the order in which direction d walks; before the first and after the last nobody is alive.
FUSEDLSTM_DEVICE Rows rows_of(const Sizes& n, int d, int64_t s) {
  if (s < 0 || s >= n.T) return {0, 0};
  const int64_t t = d ? n.T - 1 - s : s;
  if (!n.offsets) return {t * n.B, static_cast<int>(n.B)};
  const int64_t start = n.offsets[t];
  return {start, static_cast<int>(n.offsets[t + 1] - start)};
}

FUSEDLSTM_DEVICE bool is_fresh(const Sizes& n, int d, Rows rows, int b) {
  return n.fresh && b < rows.alive && n.fresh[d * n.N + rows.start + b];
}

// A word of an operand: numbers k, k + 1, ... of a row that lie `stride` apart; zeros beyond `count`.
template <class Precision>
FUSEDLSTM_DEVICE uint32_t operand_word(const typename Precision::E* row, int64_t stride, int k, int count) {
  using E = typename Precision::E;
  constexpr int PER_WORD = 4 / sizeof(E);
  union {
    E numbers[PER_WORD];
    uint32_t word;
  } made;
  made.word = 0;
  for (int e = 0; e < PER_WORD; ++e)
    if (k + e < count) made.numbers[e] = Precision::operand(row[(k + e) * stride]);
  return made.word;
}

// Bytes between two rows of an operand in shared memory: 16 more than it has, so that eight rows hit all banks.
FUSEDLSTM_INLINE constexpr int padded_bytes(int bytes) { return bytes + 16; }

// Fragments b of one step along K for both columns of tiles, from an operand [TILE, ...] in shared memory.
FUSEDLSTM_DEVICE void load_b(uint32_t (&b)[4], const unsigned char* operand, int row_bytes, int k_step, int lane) {
  const int row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
  ldmatrix_x4(b, operand + row * row_bytes + k_step * 32 + half * 16);
}

// Adds the warp's pairs of the lane's four.
template <int KS>
FUSEDLSTM_DEVICE void add_pairs(float (&sum)[PER_WARP<KS>], float4 four, int split) {
  const float pairs[PAIRS] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int p = 0; p < PAIRS; ++p)
    if (p / PER_WARP<KS> == split) sum[p % PER_WARP<KS>] += pairs[p];
}

}  // namespace fusedlstm::gpu
