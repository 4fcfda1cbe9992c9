// The one matrix product of the engine: C[M, 2 vectors] = init + A[M, K] * B, with B packed in panels.
//
// A panel is two vectors wide and holds K units of each column in the order the inner loop reads them:
// [K][2 * lanes]. The inner tile keeps kTileRows x 2 accumulators in registers; each unit of A is
// broadcast against both vectors of B. K is cut so that a panel's cut stays in the L1 cache while all
// row tiles pass over it.
#pragma once
#include "simd.h"

namespace fusedlstm::cpu {
namespace {

constexpr int kTileRows = FUSEDLSTM_TILE_ROWS;

// Bytes of a panel that stay in L1 beside a tile's rows of A.
constexpr int kPanelCutBytes = 32 * 1024;
constexpr int kLineBytes = 64;

template <class E>
constexpr int kPanel = 2 * kLanes<E>;  // columns of a panel

// Left operand: unit (r, k) is at a[r * stride + k], or, turned, at a[k * stride + r].
template <class E>
struct Left {
  const typename E::LeftUnit* a;
  int64_t stride;
};

// Result: row r has its two vectors at c[r * row_stride] and c[r * row_stride + vector_stride].
template <class Acc>
struct Result {
  Acc* c;
  int64_t row_stride;
  int64_t vector_stride;
};

// One line of `ahead` is fetched into the L2 cache per unit of K.
template <class E, int kRows, bool kTurned>
void tile(Left<E> left, const typename E::Unit* b, int64_t K, Result<typename E::Acc> out,
          Result<const typename E::Acc> init, const char* ahead) {
  using V = AccVector<E>;
  using D = Dot<E>;
  // Few rows leave the multipliers waiting for their own results: spread K over more accumulators.
  constexpr int kSplit = kRows >= 4 ? 1 : kRows >= 2 ? 2 : 4;
  V acc[kSplit][kRows][2] = {};
  const typename E::LeftUnit* rows[(kRows + 3) / 4];  // every fourth row: the others by scaled addressing
  const int64_t stride = kTurned ? 1 : left.stride;
  FUSEDLSTM_UNROLL
  for (int r = 0; r < kRows; r += 4) rows[r / 4] = left.a + r * stride;
  const int64_t stride3 = 3 * stride;
  const int64_t offsets[4] = {0, stride, 2 * stride, stride3};

  const auto step = [&](int split, int64_t k) __attribute__((always_inline)) {
    // With few rows the loads of b fill the memory's time as it is.
    if constexpr (kRows > 4) __builtin_prefetch(ahead + k * kLineBytes, 0, 2);
    const auto b0 = D::read_b(b + k * kPanel<E>);
    const auto b1 = D::read_b(b + k * kPanel<E> + kLanes<E>);
    FUSEDLSTM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const auto a = D::read_a(kTurned ? left.a + k * left.stride + r : rows[r / 4] + offsets[r % 4] + k);
      D::step(acc[split][r][0], a, b0);
      D::step(acc[split][r][1], a, b1);
    }
  };
  int64_t k = 0;
  for (; k + kSplit <= K; k += kSplit) {
    FUSEDLSTM_UNROLL
    for (int split = 0; split < kSplit; ++split) step(split, k + split);
  }
  for (; k < K; ++k) step(0, k);

  FUSEDLSTM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FUSEDLSTM_UNROLL
    for (int split = 1; split < kSplit; ++split) {
      acc[0][r][0] += acc[split][r][0];
      acc[0][r][1] += acc[split][r][1];
    }
    // init comes last: a sum that starts from zero rounds less on its way.
    if (init.c) {
      acc[0][r][0] += load<V>(init.c + r * init.row_stride);
      acc[0][r][1] += load<V>(init.c + r * init.row_stride + init.vector_stride);
    }
    store(out.c + r * out.row_stride, acc[0][r][0]);
    store(out.c + r * out.row_stride + out.vector_stride, acc[0][r][1]);
  }
}

template <class E>
using Tile = void (*)(Left<E>, const typename E::Unit*, int64_t, Result<typename E::Acc>, Result<const typename E::Acc>,
                      const char*);

template <class E, bool kTurned, int... kRows>
constexpr auto make_tiles(std::integer_sequence<int, kRows...>) {
  return std::array<Tile<E>, sizeof...(kRows)>{tile<E, kRows + 1, kTurned>...};
}

// kTiles[r - 1] computes r rows.
template <class E, bool kTurned>
constexpr auto kTiles = make_tiles<E, kTurned>(std::make_integer_sequence<int, kTileRows>{});

// M rows in as few tiles as possible, all of nearly the same height.
struct RowTiles {
  int64_t M, count;
  explicit RowTiles(int64_t rows) : M(rows), count((rows + kTileRows - 1) / kTileRows) {}
  int64_t begin(int64_t i) const { return M * i / count; }
};

// K counts units. With init.c null the product starts from zero. While the rows of A pass over one cut of the
// panel, what follows it in memory is fetched from L3: panels lie in the order in which they are used.
template <class E>
void product(int64_t M, int64_t K, Left<E> left, const typename E::Unit* b, Result<typename E::Acc> out,
             Result<const typename E::Acc> init) {
  constexpr int64_t kCut = kPanelCutBytes / (kPanel<E> * sizeof(typename E::Unit));
  const RowTiles tiles(M);
  constexpr int64_t lines_per_unit = kPanel<E> * sizeof(typename E::Unit) / kLineBytes;
  const int64_t cuts = K > kCut ? (K + kCut - 1) / kCut : 1;
  for (int64_t cut = 0; cut < cuts; ++cut) {
    const int64_t k0 = K * cut / cuts, k1 = K * (cut + 1) / cuts;
    const char* end = reinterpret_cast<const char*>(b + k1 * kPanel<E>);
    for (int64_t i = 0; i < tiles.count; ++i) {
      const int64_t r0 = tiles.begin(i), rows = tiles.begin(i + 1) - r0;
      const Result<typename E::Acc> target{out.c + r0 * out.row_stride, out.row_stride, out.vector_stride};
      Result<const typename E::Acc> start{target.c, target.row_stride, target.vector_stride};
      if (cut == 0) start = {init.c ? init.c + r0 * init.row_stride : nullptr, init.row_stride, init.vector_stride};
      kTiles<E, false>[rows - 1]({left.a + r0 * left.stride + k0, left.stride}, b + k0* kPanel<E>, k1 - k0, target,
                                 start, i < lines_per_unit ? end + i * (k1 - k0) * kLineBytes : end);
    }
  }
}

// The dot product of two rows of K elements.
template <class E>
typename E::Acc dot(const typename E::Elem* a, const typename E::Elem* b, int64_t K) {
  constexpr int n = kLanes<E>;
  AccVector<E> sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * n <= K; k += 4 * n) {
    FUSEDLSTM_UNROLL
    for (int i = 0; i < 4; ++i) sums[i] += load_elems<E>(a + k + i * n) * load_elems<E>(b + k + i * n);
  }
  for (; k < K; k += n) {
    const int width = K - k < n ? static_cast<int>(K - k) : n;
    sums[0] += load_elems<E>(a + k, width) * load_elems<E>(b + k, width);
  }
  AccVector<E> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  FUSEDLSTM_UNROLL
  for (int half = n / 2; half >= 1; half /= 2) {
    Vector<std::conditional_t<sizeof(typename E::Acc) == 4, int32_t, int64_t>> index{};
    FUSEDLSTM_UNROLL
    for (int i = 0; i < n; ++i) index[i] = (i + half) % n;
    sum += shuffle(sum, sum, index);
  }
  return sum[0];
}

}  // namespace
}  // namespace fusedlstm::cpu
