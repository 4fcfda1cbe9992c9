// Where things lie inside the engine: blocks of hidden units, packed panels, and the order of the steps.
#pragma once
#include <algorithm>

#include "../cell.h"
#include "../recurrence.h"
#include "product.h"

namespace fusedlstm::cpu {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One step of one direction in the order in which the recurrence runs: its first row, its number of
// sequences, and how many of them come from the step before (the others start here, from h0 and c0).
struct Step {
  int64_t row, count, continued;
};

inline void fill_steps(const LayerShape& shape, bool reversed, Step* steps) {
  int64_t row = 0;
  for (int64_t t = 0; t < shape.T; ++t) {
    const int64_t count = shape.batch_sizes ? shape.batch_sizes[t] : shape.B;
    steps[reversed ? shape.T - 1 - t : t] = {row, count, 0};
    row += count;
  }
  for (int64_t s = 1; s < shape.T; ++s) steps[s].continued = std::min(steps[s - 1].count, steps[s].count);
}

// How many steps make a chunk of about `rows` rows.
inline int64_t chunk_steps(const LayerShape& shape, int64_t rows) {
  return std::clamp<int64_t>(rows / std::max<int64_t>(shape.B, 1), 1, std::max<int64_t>(shape.T, 1));
}

// Work that is worth waking one more thread for, in multiply-adds a step.
constexpr int64_t kWorkPerThread = 16 * 1024;

inline int useful_threads(const LayerShape& shape, int threads) {
  const int64_t work = shape.B * shape.D * 4 * shape.H * (shape.H + 1);
  return static_cast<int>(std::clamp<int64_t>(work / kWorkPerThread, 1, threads));
}

// Few tasks for many threads: into how many cuts the batch goes as well.
inline int64_t batch_splits(const LayerShape& shape, int64_t tasks, int threads) {
  return std::clamp<int64_t>(2 * threads / (tasks * shape.D), 1, std::max<int64_t>(shape.B / kTileRows, 1));
}

// Lane l of vector v and lane v of vector l change places, for as many vectors as a vector has lanes.
template <class V>
FUSEDLSTM_ALWAYS_INLINE void transpose(V* v) {
  constexpr int n = sizeof(V) / sizeof(V{}[0]);
  using Index = Vector<std::conditional_t<sizeof(V{}[0]) == 4, int32_t, int64_t>>;
#pragma GCC unroll 4
  for (int half = 1; half < n; half *= 2) {
    Index first{}, second{};
#pragma GCC unroll 16
    for (int lane = 0; lane < n; ++lane) {
      first[lane] = lane & half ? n + lane - half : lane;
      second[lane] = lane & half ? n + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i & half) continue;
      const V a = v[i], b = v[i | half];
      v[i] = shuffle(a, b, first);
      v[i | half] = shuffle(a, b, second);
    }
  }
}

// panel[k][j] = rows[j][k] for `kPanel` rows of which those that are null read as zero: the transposing pack.
template <class E>
void pack_columns(const typename E::Elem* const* rows, int64_t K, typename E::Unit* panel) {
  using Units = Vector<typename E::Unit>;
  constexpr int n = kLanes<E>;
  int64_t k0 = 0;
  for (; k0 + n <= K; k0 += n)
    for (int j0 = 0; j0 < kPanel<E>; j0 += n) {
      Units square[n];
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) square[j] = rows[j0 + j] ? load<Units>(rows[j0 + j] + k0 * E::kPair) : Units{};
      transpose(square);
#pragma GCC unroll 16
      for (int k = 0; k < n; ++k) store(panel + (k0 + k) * kPanel<E> + j0, square[k]);
    }
  for (; k0 < K; ++k0)
    for (int j = 0; j < kPanel<E>; ++j)
      panel[k0 * kPanel<E> + j] = rows[j] ? load<typename E::Unit>(rows[j] + k0 * E::kPair) : 0;
}

// Two rows of bfloat16 as pairs; a missing second row reads as zero.
FUSEDLSTM_ALWAYS_INLINE Vector<uint32_t> interleave(const uint16_t* even, const uint16_t* odd) {
  const auto low = __builtin_convertvector(load<HalfWords>(even), Vector<uint32_t>);
  return odd ? low | __builtin_convertvector(load<HalfWords>(odd), Vector<uint32_t>) << 16 : low;
}

// panel[k][j] = row(k)[column + j]: the pack that keeps rows (bfloat16: rows 2k and 2k+1 interleave).
// Rows that are null and columns from `columns` on read as zero.
template <class E, class Row>
void pack_rows(const Row& row_at, int64_t row_count, int64_t column, int64_t columns, typename E::Unit* panel) {
  const int width = static_cast<int>(std::min<int64_t>(kPanel<E>, columns - column));
  for (int64_t k = 0; k < ceil_div(row_count, E::kPair); ++k, panel += kPanel<E>) {
    if constexpr (E::kPair == 1) {
      const typename E::Elem* row = row_at(k);
      if (row && width == kPanel<E>) {
        std::memcpy(panel, row + column, sizeof(*panel) * kPanel<E>);
      } else {
        for (int j = 0; j < kPanel<E>; ++j) panel[j] = row && j < width ? row[column + j] : 0;
      }
    } else {
      const typename E::Elem* even = row_at(2 * k);
      const typename E::Elem* odd = 2 * k + 1 < row_count ? row_at(2 * k + 1) : nullptr;
      if (width == kPanel<E> && even) {
        for (int j = 0; j < kPanel<E>; j += kLanes<E>)
          store(panel + j, interleave(even + column + j, odd ? odd + column + j : nullptr));
        continue;
      }
      for (int j = 0; j < kPanel<E>; ++j) {
        const uint32_t low = even && j < width ? even[column + j] : 0;
        const uint32_t high = odd && j < width ? odd[column + j] : 0;
        panel[j] = low | high << 16;
      }
    }
  }
}

}  // namespace
}  // namespace fusedlstm::cpu
