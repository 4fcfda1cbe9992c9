// The backward of one layer, from the last step of the recurrence to its first.
//
//   dh_t = dy_t + da_{t+1} W_hh       (i, f, g, o gradients) da_t, dc_{t-1} = cell_backward(...)
//   dx_t = da_t W_ih                  dW_ih = sum_t da_tT x_t      dW_hh = sum_t da_tT h_{t-1}
//
// Threads own slices of H: one barrier a step. da is kept for a chunk of steps only (about as many rows as
// a panel's cut in L1 is long); then the chunk's part of dx and dW is computed while da is still in cache,
// so da for all steps never exists in memory. Sums run in a fixed order: the same input, the same bits.
#pragma once
#include "layout.h"
#include "memory.h"
#include "share.h"

namespace fusedlstm::cpu {
namespace {

constexpr int64_t kBackwardChunkRows = 320;
constexpr int64_t kInputRows = 128;  // rows of dx in one task
constexpr int64_t kWeightTiles = 4;  // row tiles of dW in one task, at most

template <class E>
class Backward {
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  using Acc = typename E::Acc;
  using V = AccVector<E>;
  static constexpr int kLanes = cpu::kLanes<E>;
  static constexpr int kPanel = cpu::kPanel<E>;
  static constexpr int64_t kPairsStride = (kWeightTiles * kTileRows + kLanes - 1) / kLanes * kLanes;
  static constexpr bool kNarrow = sizeof(Elem) != sizeof(Acc);  // dW needs a wider place to grow in

 public:
  Backward(const LayerBackward& args, int threads)
      : p_(args),
        s_(args.shape),
        threads_(useful_threads(s_, threads)),
        stride_(ceil_div(s_.H, kLanes) * kLanes),
        gate_units_(4 * stride_ / E::kPair),
        da_stride_(4 * stride_ + kLineBytes / static_cast<int64_t>(sizeof(Elem))),
        hidden_panels_(ceil_div(s_.H, kPanel)),
        input_panels_(p_.ids ? 0 : ceil_div(s_.I, kPanel)),
        groups_(ceil_div(s_.H, kWeightTiles * kTileRows)),
        chunk_(chunk_steps(s_, kBackwardChunkRows)),
        splits_(batch_splits(s_, hidden_panels_, threads_)),
        wants_dw_(p_.gradients[0].dw_ih != nullptr) {
    const int64_t rows = chunk_ * s_.B, row_units = ceil_div(rows, E::kPair);
    for (int64_t d = 0; d < s_.D; ++d) {
      memory_.reserve(steps_[d], s_.T);
      memory_.reserve(da_[d][0], rows * da_stride_);
      memory_.reserve(da_[d][1], rows * da_stride_);
      memory_.reserve(dc_[d], s_.B * stride_);
      memory_.reserve(w_hh_[d], hidden_panels_ * gate_units_ * kPanel);
      if (p_.dx) memory_.reserve(w_ih_[d], input_panels_ * gate_units_ * kPanel);
      if (!wants_dw_) continue;
      memory_.reserve(left_panels_[d], (input_panels_ + hidden_panels_) * row_units * kPanel);
      memory_.reserve(db_[d], splits_ * 4 * stride_);
      if (kNarrow && !p_.ids) memory_.reserve(wide_ih_[d], 4 * s_.H * s_.I);
      if (kNarrow) memory_.reserve(wide_hh_[d], 4 * s_.H * s_.H);
      if (p_.ids) memory_.reserve(id_table_[d], s_.I * 4 * s_.H);
      memory_.reserve(previous_[d], s_.N);
    }
    tile_size_ = std::max(s_.B, kInputRows) * kPanel;
    memory_.reserve(tiles_, threads_ * tile_size_);
    if (E::kPair == 2) memory_.reserve(pairs_, threads_ * row_units * kPairsStride);
    memory_.allocate();
    for (int64_t d = 0; d < s_.D; ++d) {
      fill_steps(s_, d == 1, steps_[d]);
      if (wants_dw_) list_previous_rows(d);
    }
    if (p_.dx) use_huge_pages(p_.dx, sizeof(Elem) * s_.N * s_.I);
    for (int64_t d = 0; d < s_.D && wants_dw_ && !kNarrow; ++d) {
      if (!p_.ids) wide_ih_[d] = static_cast<Acc*>(p_.gradients[d].dw_ih);
      wide_hh_[d] = static_cast<Acc*>(p_.gradients[d].dw_hh);
    }
  }

  void run() { parallel(threads_, *this); }

  void operator()(const Worker& worker) {
    const int64_t D = s_.D;
    const int64_t panels = hidden_panels_ + (p_.dx ? input_panels_ : 0);
    worker.for_each(D * panels, [&](int64_t task) { pack_weights(task / panels, task % panels); });
    worker.for_each(s_.B, [&](int64_t b) { begin_sequence(b); });
    for (int64_t s = s_.T - 1; s >= -1; --s) {
      worker.for_each(
          D * hidden_panels_ * splits_,
          [&](int64_t task) {
            step(s, task / splits_ / hidden_panels_, task / splits_ % hidden_panels_, task % splits_, worker.rank);
          },
          s % 2 != 0);
      if (s >= 0 && (s == 0 || chunk_index(s) != chunk_index(s - 1))) chunk_products(worker, s);
    }
    worker.for_each(s_.B, [&](int64_t b) { end_sequence(b); });
    if (wants_dw_)
      worker.for_each(D * 4 * s_.H, [&](int64_t task) { finish_row(task / (4 * s_.H), task % (4 * s_.H)); });
  }

 private:
  // Row r of the [4 * stride_] gate axis of da: its row in W, or null in the padding.
  const Elem* weight_row(const void* w, int64_t r, int64_t columns) const {
    const int64_t unit = r % stride_;
    return unit < s_.H ? static_cast<const Elem*>(w) + (r / stride_ * s_.H + unit) * columns : nullptr;
  }

  void pack_weights(int64_t d, int64_t panel) {
    const bool hidden = panel < hidden_panels_;
    const int64_t columns = hidden ? s_.H : s_.I;
    const void* w = hidden ? p_.weights[d].w_hh : p_.weights[d].w_ih;
    if (!hidden) panel -= hidden_panels_;
    pack_rows<E>([&](int64_t r) { return weight_row(w, r, columns); }, 4 * stride_, panel * kPanel, columns,
                 (hidden ? w_hh_[d] : w_ih_[d]) + panel * gate_units_ * kPanel);
  }

  void list_previous_rows(int64_t d) {
    for (int64_t s = 0; s < s_.T; ++s) {
      const Step& now = steps_[d][s];
      for (int64_t b = 0; b < now.count; ++b)
        previous_[d][now.row + b] =
            b < now.continued ? static_cast<const Elem*>(p_.y) + ((steps_[d][s - 1].row + b) * s_.D + d) * s_.H
                              : static_cast<const Elem*>(p_.h0) + (d * s_.B + b) * s_.H;
    }
  }

  void begin_sequence(int64_t b) {
    for (int64_t d = 0; d < s_.D; ++d) {
      for (int64_t unit = 0; unit < s_.H; unit += kLanes) {
        const auto* dc_n = static_cast<const Elem*>(p_.dc_n);
        store(dc_[d] + b * stride_ + unit,
              dc_n ? load_elems<E>(dc_n + (d * s_.B + b) * s_.H + unit, lanes_of(unit)) : V{});
      }
      // The padding of da is never written again, and the products read it.
      for (Elem* da : da_[d])
        for (int64_t row = b; row < chunk_ * s_.B; row += s_.B)
          for (int64_t gate = 0; gate < 4; ++gate)
            std::fill_n(da + row * da_stride_ + gate * stride_ + s_.H, stride_ - s_.H, Elem{0});
    }
  }

  void end_sequence(int64_t b) {
    for (int64_t d = 0; d < s_.D; ++d)
      for (int64_t unit = 0; unit < s_.H; unit += kLanes)
        store_elems<E>(static_cast<Elem*>(p_.dc0) + (d * s_.B + b) * s_.H + unit, load<V>(dc_[d] + b * stride_ + unit),
                       lanes_of(unit));
  }

  // dh for two vectors of units of one cut of the sequences, then their cells; step -1 only completes dh0.
  void step(int64_t s, int64_t d, int64_t panel, int64_t split, int rank) {
    const int64_t b0 = s_.B * split / splits_, b1 = s_.B * (split + 1) / splits_;
    Acc* tile = tiles_ + rank * tile_size_;
    int64_t carried = 0;  // sequences whose dh comes from the step that was computed before
    if (s + 1 < s_.T) {
      const Step& next = steps_[d][s + 1];
      carried = next.continued;
      const int64_t count = std::min(b1, next.count) - b0;
      if (count > 0)
        product<E>(count, gate_units_,
                   {reinterpret_cast<const Unit*>(da_rows(d, s + 1) + b0 * da_stride_), da_stride_ / E::kPair},
                   w_hh_[d] + panel * gate_units_ * kPanel, {tile, kPanel, kLanes}, {nullptr, 0, 0});
      for (int64_t b = std::max(b0, carried); b < b0 + count; ++b)
        store_columns(static_cast<Elem*>(p_.dh0) + (d * s_.B + b) * s_.H, panel, s_.H, tile + (b - b0) * kPanel);
    }
    if (s < 0) return;
    const int64_t end = std::min(b1, steps_[d][s].count);
    for (int64_t unit = panel * kPanel; unit < std::min((panel + 1) * kPanel, s_.H); unit += kLanes)
      cells(s, d, unit, split, b0, end, carried, tile + (unit - panel * kPanel));
  }

  void cells(int64_t s, int64_t d, int64_t unit, int64_t split, int64_t b0, int64_t end, int64_t carried,
             const Acc* tile) {
    const Step& now = steps_[d][s];
    const int width = lanes_of(unit);
    const int64_t H = s_.H;
    const auto* dy = static_cast<const Elem*>(p_.dy);
    const auto* dh_n = static_cast<const Elem*>(p_.dh_n);
    const auto* saved_c = static_cast<const Acc*>(p_.c) + d * s_.N * H + unit;
    Elem* da = da_rows(d, s) + b0 * da_stride_ + unit;
    Gates<V> sum{};  // over the rows: db
    for (int64_t b = b0; b < end; ++b, tile += kPanel, da += da_stride_) {
      const int64_t row = now.row + b, sequence = (d * s_.B + b) * H + unit;
      const Elem* gates = static_cast<const Elem*>(p_.gates) + (d * s_.N + row) * 4 * H + unit;
      const Gates<V> a{load_elems<E>(gates, width), load_elems<E>(gates + H, width),
                       load_elems<E>(gates + 2 * H, width), load_elems<E>(gates + 3 * H, width)};
      const V c = load_elems<Wide<E>>(saved_c + row * H, width);
      const V c_prev = b < now.continued ? load_elems<Wide<E>>(saved_c + (steps_[d][s - 1].row + b) * H, width)
                                         : load_elems<E>(static_cast<const Elem*>(p_.c0) + sequence, width);
      V dh = dy ? load_elems<E>(dy + (row * s_.D + d) * H + unit, width) : V{};
      if (b < carried)
        dh += load<V>(tile);
      else if (dh_n)
        dh += load_elems<E>(dh_n + sequence, width);
      Acc* state = dc_[d] + b * stride_ + unit;
      V dc = load<V>(state);
      const Gates<V> g = cell_backward<VectorMath>(a, c_prev, c, dh, dc);
      store(state, dc);
      sum = {sum.i + g.i, sum.f + g.f, sum.g + g.g, sum.o + g.o};
      store_elems<E>(da, g.i, width);
      store_elems<E>(da + stride_, g.f, width);
      store_elems<E>(da + 2 * stride_, g.g, width);
      store_elems<E>(da + 3 * stride_, g.o, width);
    }
    if (!wants_dw_) return;
    Acc* db = db_[d] + split * 4 * stride_ + unit;
    const bool first = s == s_.T - 1;
    int64_t gate = 0;
    for (const V& part : {sum.i, sum.f, sum.g, sum.o}) {
      store(db + gate * stride_, first ? part : load<V>(db + gate * stride_) + part);
      ++gate;
    }
  }

  // ---- what a chunk of steps, all of whose da are known, adds to dx and dW

  struct Chunk {
    int64_t row, rows;  // in the order of memory
    const Elem* da;     // [rows, da_stride_]
  };

  int64_t chunk_index(int64_t s) const { return (s_.T - 1 - s) / chunk_; }

  // The rows of the chunk that holds step s.
  Chunk chunk_of(int64_t d, int64_t s) const {
    const int64_t last = s_.T - 1 - chunk_index(s) * chunk_, first = std::max<int64_t>(last - chunk_ + 1, 0);
    const Step &a = steps_[d][first], &b = steps_[d][last];
    const int64_t begin = std::min(a.row, b.row);
    return {begin, std::max(a.row + a.count, b.row + b.count) - begin, da_[d][chunk_index(s) % 2]};
  }

  Elem* da_rows(int64_t d, int64_t s) const {
    return da_[d][chunk_index(s) % 2] + (steps_[d][s].row - chunk_of(d, s).row) * da_stride_;
  }

  void chunk_products(const Worker& worker, int64_t s) {
    const int64_t left = wants_dw_ ? input_panels_ + hidden_panels_ : 0;
    if (left) worker.for_each(s_.D * left, [&](int64_t task) { pack_left(s, task / left, task % left); });
    // Two directions write the same rows of dx: then one task takes a panel's rows of both, in order.
    const int64_t cuts = s_.D == 1 ? ceil_div(chunk_ * s_.B, kInputRows) : 1;
    const int64_t input_tasks = p_.dx ? input_panels_ * cuts : 0;
    const int64_t weight_tasks = wants_dw_ ? s_.D * 4 * groups_ : 0;
    worker.for_each(input_tasks + weight_tasks, [&](int64_t task) {
      if (task < input_tasks)
        for (int64_t d = 0; d < s_.D; ++d)
          for (int64_t cut = task % cuts; cut < ceil_div(chunk_of(d, s).rows, kInputRows); cut += cuts)
            input_gradient(s, d, task / cuts, cut, worker.rank);
      else
        weight_gradient(s, (task - input_tasks) / groups_ / 4, (task - input_tasks) / groups_ % 4,
                        (task - input_tasks) % groups_, worker.rank);
    });
  }

  // kInputRows rows of one panel of dx.
  void input_gradient(int64_t s, int64_t d, int64_t panel, int64_t cut, int rank) {
    Acc* tile = tiles_ + rank * tile_size_;
    const Chunk chunk = chunk_of(d, s);
    const int64_t r0 = cut * kInputRows, rows = std::min(kInputRows, chunk.rows - r0);
    product<E>(rows, gate_units_, {reinterpret_cast<const Unit*>(chunk.da + r0 * da_stride_), da_stride_ / E::kPair},
               w_ih_[d] + panel * gate_units_ * kPanel, {tile, kPanel, kLanes}, {nullptr, 0, 0});
    for (int64_t r = 0; r < rows; ++r, tile += kPanel) {
      const int64_t row = chunk.row + r0 + r;
      Elem* dx = static_cast<Elem*>(p_.dx) + row * s_.I;
      if (written_before(d, s, row)) add_columns(dx, panel, s_.I, tile);
      store_columns(dx, panel, s_.I, tile);
    }
  }

  // Whether the other direction was at this row of dx first: direction 0 comes down from the last row,
  // direction 1 up from the first, and in a chunk direction 0 goes before direction 1.
  bool written_before(int64_t d, int64_t s, int64_t row) const {
    if (s_.D == 1) return false;
    const int64_t other = chunk_of(1 - d, s).row;
    return d == 0 ? row < other : row >= other;
  }

  // One panel of [x | h_{t-1}] of the chunk's rows.
  void pack_left(int64_t s, int64_t d, int64_t panel) {
    const Chunk chunk = chunk_of(d, s);
    Unit* packed = left_panel(d, panel, chunk);
    if (panel < input_panels_)
      pack_rows<E>([&](int64_t r) { return static_cast<const Elem*>(p_.x) + (chunk.row + r) * s_.I; }, chunk.rows,
                   panel * kPanel, s_.I, packed);
    else
      pack_rows<E>([&](int64_t r) { return previous_[d][chunk.row + r]; }, chunk.rows, (panel - input_panels_) * kPanel,
                   s_.H, packed);
  }

  Unit* left_panel(int64_t d, int64_t panel, const Chunk& chunk) const {
    return left_panels_[d] + panel * ceil_div(chunk.rows, E::kPair) * kPanel;
  }

  // A group of rows of dW_ih, dW_hh and db of one gate.
  void weight_gradient(int64_t s, int64_t d, int64_t gate, int64_t group, int rank) {
    const Chunk chunk = chunk_of(d, s);
    const bool first = chunk_index(s) == 0;
    const int64_t row_units = ceil_div(chunk.rows, E::kPair);
    const int64_t unit0 = s_.H * group / groups_, count = s_.H * (group + 1) / groups_ - unit0;
    const Elem* da = chunk.da + gate * stride_ + unit0;
    const int64_t row0 = gate * s_.H + unit0;  // in dW
    if (p_.ids) add_by_id(d, chunk, da, row0, count, first);

    const RowTiles tiles(count);
    const Left<E> left = turned(chunk, da, count, rank);
    for (int64_t panel = 0; panel < input_panels_ + hidden_panels_; ++panel) {
      const bool hidden = panel >= input_panels_;
      const int64_t columns = hidden ? s_.H : s_.I, index = hidden ? panel - input_panels_ : panel;
      Acc* dw = (hidden ? wide_hh_[d] : wide_ih_[d]) + row0 * columns + index * kPanel;
      const bool whole = (index + 1) * kPanel <= columns;
      const Unit* b = left_panel(d, panel, chunk);
      const char* b_end = reinterpret_cast<const char*>(b + row_units * kPanel);
      const int64_t ahead_bytes = row_units * kLineBytes;  // that one row tile fetches of the next panel
      for (int64_t i = 0; i < tiles.count; ++i) {
        const int64_t rows = tiles.begin(i + 1) - tiles.begin(i);
        Acc* target = dw + tiles.begin(i) * columns;
        Acc edge[kTileRows * kPanel];
        const Result<Acc> out = whole ? Result<Acc>{target, columns, kLanes} : Result<Acc>{edge, kPanel, kLanes};
        const Result<const Acc> init{whole && !first ? target : nullptr, columns, kLanes};
        // The sums of the next tile come from L3: ask for them now.
        for (int64_t r = 0; r < rows && whole; ++r)
          for (int64_t j = 0; j < kPanel; j += kLineBytes / static_cast<int64_t>(sizeof(Acc)))
            __builtin_prefetch(target + (rows + r) * columns + j, 1, 3);
        kTiles<E, true>[rows - 1]({left.a + tiles.begin(i), left.stride}, b, row_units, out, init,
                                  b_end + i* ahead_bytes);
        for (int64_t r = 0; r < rows && !whole; ++r)
          for (int64_t j = 0; j < columns - index * kPanel; ++j)
            target[r * columns + j] = (first ? 0 : target[r * columns + j]) + edge[r * kPanel + j];
      }
    }
  }

  // `count` columns of da as the turned left operand: as they lie, or (bfloat16) with rows 2k and 2k+1 in pairs.
  Left<E> turned(const Chunk& chunk, const Elem* da, int64_t count, int rank) {
    if constexpr (E::kPair == 1) {
      return {da, da_stride_};
    } else {
      Unit* pairs = pairs_ + rank * ceil_div(chunk_ * s_.B, 2) * kPairsStride;
      for (int64_t k = 0; k < ceil_div(chunk.rows, 2); ++k, da += 2 * da_stride_)
        // Whole vectors: what runs over is the start of the next pair of rows, written after this one.
        for (int64_t j = 0; j < count; j += kLanes)
          store(pairs + k * kPairsStride + j,
                interleave(da + j, 2 * k + 1 < chunk.rows ? da + da_stride_ + j : nullptr));
      return {pairs, kPairsStride};
    }
  }

  // dW_ih for one-hot rows of x: da is added to the columns that the ids name; kept transposed until the end.
  void add_by_id(int64_t d, const Chunk& chunk, const Elem* da, int64_t row0, int64_t count, bool first) {
    for (int64_t id = 0; id < s_.I && first; ++id) std::fill_n(id_table_[d] + id * 4 * s_.H + row0, count, Acc{0});
    for (int64_t r = 0; r < chunk.rows; ++r)
      add_row(id_table_[d] + p_.ids[chunk.row + r] * 4 * s_.H + row0, da + r * da_stride_, count);
  }

  static void add_row(Acc* __restrict sums, const Elem* __restrict row, int64_t count) {
    for (int64_t j = 0; j < count; ++j) sums[j] += to_acc<E>(row[j]);
  }

  // One row of dW and db in the storage type.
  void finish_row(int64_t d, int64_t row) {
    const DirectionGradients& g = p_.gradients[d];
    if (p_.ids)
      convert(static_cast<Elem*>(g.dw_ih) + row * s_.I, id_table_[d] + row, s_.I, 4 * s_.H);
    else if (kNarrow)
      convert(static_cast<Elem*>(g.dw_ih) + row * s_.I, wide_ih_[d] + row * s_.I, s_.I, 1);
    if (kNarrow) convert(static_cast<Elem*>(g.dw_hh) + row * s_.H, wide_hh_[d] + row * s_.H, s_.H, 1);
    if (!g.db) return;
    Acc db = 0;
    for (int64_t split = 0; split < splits_; ++split) db += db_[d][(split * 4 + row / s_.H) * stride_ + row % s_.H];
    convert(static_cast<Elem*>(g.db) + row, &db, 1, 1);
  }

  static void convert(Elem* to, const Acc* from, int64_t count, int64_t from_stride) {
    for (int64_t k = 0; k < count; k += kLanes) {
      const int width = static_cast<int>(std::min<int64_t>(kLanes, count - k));
      Acc lanes[kLanes] = {};
      for (int j = 0; j < width; ++j) lanes[j] = from[(k + j) * from_stride];
      store_elems<E>(to + k, load<V>(lanes), width);
    }
  }

  // The columns of one panel that exist, to a row of `columns` elements.
  void store_columns(Elem* row, int64_t panel, int64_t columns, const Acc* values) const {
    for (int64_t j = panel * kPanel; j < std::min((panel + 1) * kPanel, columns); j += kLanes)
      store_elems<E>(row + j, load<V>(values + (j - panel * kPanel)),
                     static_cast<int>(std::min<int64_t>(kLanes, columns - j)));
  }

  void add_columns(const Elem* row, int64_t panel, int64_t columns, Acc* values) const {
    for (int64_t j = panel * kPanel; j < std::min((panel + 1) * kPanel, columns); ++j)
      values[j - panel * kPanel] += to_acc<E>(row[j]);
  }

  int lanes_of(int64_t unit) const { return static_cast<int>(std::min<int64_t>(kLanes, s_.H - unit)); }

  const LayerBackward& p_;
  const LayerShape s_;
  const int threads_;
  const int64_t stride_, gate_units_, da_stride_, hidden_panels_, input_panels_, groups_, chunk_, splits_;
  const bool wants_dw_;
  int64_t tile_size_;
  Workspace memory_;
  Step* steps_[2];
  const Elem** previous_[2];  // [N]: where h_{t-1} of each row is
  Elem* da_[2][2];  // [chunk rows, da_stride_], two chunks: the newer one still needs the older one's first step
  Acc* dc_[2];
  Unit *w_hh_[2], *w_ih_[2], *left_panels_[2];
  Acc *db_[2], *wide_ih_[2], *wide_hh_[2], *id_table_[2];
  Acc* tiles_;
  Unit* pairs_;
};

}  // namespace
}  // namespace fusedlstm::cpu
