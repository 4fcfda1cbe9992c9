// The forward of one layer.
//
//   a_t = x_t W_ihT + b + h_{t-1} W_hhT          [rows, 4H]
//   (i, f, g, o), c_t, h_t = cell(a_t, c_{t-1})
//
// Hidden units are cut into blocks of one vector. A block's four gates fill two panels (i f, g o), and a task
// is one block of one step: both products into a tile that stays in L1/L2, then the cell. So a thread
// owns the same slice of W_ih, W_hh, c and h for all steps, and one barrier a step is all.
// Small batches take the product with W_ih for a chunk of steps at once, to use each panel many times.
#pragma once
#include "layout.h"
#include "memory.h"
#include "share.h"

namespace fusedlstm::cpu {
namespace {

// Calls of so few rows read W as it lies: packing it would cost more than all their products.
constexpr int64_t kDirectRows = 4;

// Rows below which steps are put together for the product with W_ih.
constexpr int64_t kForwardChunkRows = 96;

template <class E>
class Forward {
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  using Acc = typename E::Acc;
  using V = AccVector<E>;
  static constexpr int kLanes = cpu::kLanes<E>;
  static constexpr int64_t kTileWidth = 4 * kLanes;
  static constexpr int64_t kBlockPanels = 2;

 public:
  Forward(const LayerForward& args, int threads)
      : p_(args),
        s_(args.shape),
        threads_(useful_threads(s_, threads)),
        blocks_(ceil_div(s_.H, kLanes)),
        stride_(blocks_ * kLanes),
        input_units_(p_.ids ? s_.I : ceil_div(s_.I, E::kPair)),
        hidden_units_(stride_ / E::kPair),
        direct_(s_.N <= kDirectRows),
        chunk_(direct_ || s_.B >= kForwardChunkRows ? 1 : chunk_steps(s_, 2 * kForwardChunkRows)),
        splits_(chunk_ > 1 ? 1 : batch_splits(s_, blocks_, threads_)) {
    for (int64_t d = 0; d < s_.D; ++d) {
      memory_.reserve(steps_[d], s_.T);
      if (!direct_) memory_.reserve(w_[d], blocks_ * (input_units_ + hidden_units_) * kBlockPanels * kPanel<E>);
      memory_.reserve(bias_[d], blocks_ * kTileWidth);
      memory_.reserve(h_[d][0], s_.B * stride_);
      memory_.reserve(h_[d][1], s_.B * stride_);
      memory_.reserve(c_[d], s_.B * stride_);
    }
    const int64_t tile_rows = chunk_ > 1 ? chunk_ * s_.B : ceil_div(s_.B, splits_);
    tile_size_ = tile_rows * kTileWidth;
    memory_.reserve(tiles_, tile_size_ * (chunk_ > 1 ? s_.D * blocks_ : threads_));
    memory_.allocate();
    for (int64_t d = 0; d < s_.D; ++d) fill_steps(s_, d == 1, steps_[d]);
    use_huge_pages(p_.y, sizeof(Elem) * s_.N * s_.D * s_.H);
    if (p_.c) {
      use_huge_pages(p_.c, sizeof(Acc) * s_.D * s_.N * s_.H);
      use_huge_pages(p_.gates, sizeof(Elem) * s_.D * s_.N * 4 * s_.H);
    }
  }

  void run() { parallel(threads_, *this); }

  void operator()(const Worker& worker) {
    const int64_t tasks = s_.D * blocks_;
    worker.for_each(tasks, [&](int64_t task) { prepare(task / blocks_, task % blocks_); });
    for (int64_t s = 0; s < s_.T; ++s)
      worker.for_each(
          tasks * splits_,
          [&](int64_t task) {
            step(s, task / splits_ / blocks_, task / splits_ % blocks_, task % splits_, worker.rank);
          },
          s % 2 == 1);
  }

 private:
  // Packs one block's weights and copies its slice of the initial state.
  void prepare(int64_t d, int64_t block) {
    const int64_t unit = block * kLanes;
    const int width = lanes_of(block);
    for (int64_t b = 0; b < s_.B; ++b) {
      const int64_t from = (d * s_.B + b) * s_.H + unit, to = b * stride_ + unit;
      const V h = load_elems<E>(static_cast<const Elem*>(p_.h0) + from, width);
      store_elems<E>(h_[d][0] + to, h);
      store_elems<E>(h_[d][1] + to, h);
      store(c_[d] + to, load_elems<E>(static_cast<const Elem*>(p_.c0) + from, width));
    }
    if (!direct_) pack_weights(d, block, width);
  }

  Acc bias_of(int64_t d, int64_t row) const {
    const DirectionWeights& w = p_.weights[d];
    if (!w.b_ih) return 0;
    return to_acc<E>(static_cast<const Elem*>(w.b_ih)[row]) + to_acc<E>(static_cast<const Elem*>(w.b_hh)[row]);
  }

  void pack_weights(int64_t d, int64_t block, int width) {
    const DirectionWeights& w = p_.weights[d];
    const int64_t unit = block * kLanes;
    for (int half = 0; half < 2; ++half) {
      const Elem* input_rows[kPanel<E>] = {};
      const Elem* hidden_rows[kPanel<E>] = {};
      for (int j = 0; j < kPanel<E>; ++j) {
        if (j % kLanes >= width) continue;
        const int64_t row = (2 * half + j / kLanes) * s_.H + unit + j % kLanes;
        input_rows[j] = static_cast<const Elem*>(w.w_ih) + row * s_.I;
        hidden_rows[j] = static_cast<const Elem*>(w.w_hh) + row * s_.H;
      }
      if (!p_.ids) pack_columns<E>(input_rows, input_units_, input_panel(d, block, half));
      pack_hidden(hidden_rows, hidden_panel(d, block, half));
      for (int j = 0; j < kPanel<E>; ++j) {
        const int64_t row = (2 * half + j / kLanes) * s_.H + unit + j % kLanes;
        bias_[d][block * kTileWidth + half * kPanel<E> + j] = j % kLanes < width ? bias_of(d, row) : 0;
      }
      if (p_.ids) {
        Acc* table = id_table(d, block);
        for (int64_t id = 0; id < s_.I; ++id)
          for (int j = 0; j < kPanel<E>; ++j)
            table[id * kTileWidth + half * kPanel<E> + j] = input_rows[j] ? to_acc<E>(input_rows[j][id]) : 0;
      }
    }
  }

  // W_hh's rows have H elements, the state's rows stride_: what lies beyond H is zero in both.
  void pack_hidden(const Elem* const* rows, Unit* panel) {
    const int64_t whole = s_.H / E::kPair;
    pack_columns<E>(rows, whole, panel);
    for (int64_t k = whole; k < hidden_units_; ++k)
      for (int j = 0; j < kPanel<E>; ++j) {
        // The last element of an odd H has no partner.
        const bool lone = rows[j] && k * E::kPair < s_.H;
        panel[k * kPanel<E> + j] = lone ? rows[j][k * E::kPair] : 0;
      }
  }

  // One block of one step for one cut of its sequences.
  void step(int64_t s, int64_t d, int64_t block, int64_t split, int rank) {
    const Step& now = steps_[d][s];
    const int64_t b0 = now.count * split / splits_, count = now.count * (split + 1) / splits_ - b0;
    if (count == 0) return;
    Acc* tile = tiles_ + tile_size_ * (chunk_ > 1 ? d * blocks_ + block : rank);
    if (direct_) {
      direct_product(s, d, block, b0, count, tile);
      cells(s, d, block, b0, count, tile);
      return;
    }
    if (chunk_ == 1) {
      input_product(d, block, now.row + b0, count, tile);
    } else {
      const Step& last = steps_[d][std::min(s - s % chunk_ + chunk_, s_.T) - 1];
      const Step& first = steps_[d][s - s % chunk_];
      const int64_t begin = std::min(first.row, last.row);
      if (s % chunk_ == 0)
        input_product(d, block, begin, std::max(first.row + first.count, last.row + last.count) - begin, tile);
      tile += (now.row - begin) * kTileWidth;
    }
    const Elem* h = h_[d][s % 2] + b0 * stride_;
    for (int half = 0; half < 2; ++half) {
      Acc* c = tile + half * kPanel<E>;
      product<E>(count, hidden_units_, {reinterpret_cast<const Unit*>(h), hidden_units_}, hidden_panel(d, block, half),
                 {c, kTileWidth, kLanes}, {c, kTileWidth, kLanes});
    }
    cells(s, d, block, b0, count, tile);
  }

  // tile = x W_ihT + b + h W_hhT for one block, by dot products with the rows of W.
  void direct_product(int64_t s, int64_t d, int64_t block, int64_t b0, int64_t count, Acc* tile) const {
    const int width = lanes_of(block);
    for (int64_t lane = 0; lane < kTileWidth; ++lane) {
      if (lane % kLanes >= width) {
        for (int64_t b = 0; b < count; ++b) tile[b * kTileWidth + lane] = 0;
        continue;
      }
      const int64_t row = lane / kLanes * s_.H + block * kLanes + lane % kLanes;
      const Elem* w_ih = static_cast<const Elem*>(p_.weights[d].w_ih) + row * s_.I;
      const Elem* w_hh = static_cast<const Elem*>(p_.weights[d].w_hh) + row * s_.H;
      for (int64_t b = 0; b < count; ++b) {
        const int64_t x_row = steps_[d][s].row + b0 + b;
        const Acc from_x =
            p_.ids ? to_acc<E>(w_ih[p_.ids[x_row]]) : dot<E>(w_ih, static_cast<const Elem*>(p_.x) + x_row * s_.I, s_.I);
        tile[b * kTileWidth + lane] = bias_of(d, row) + from_x + dot<E>(w_hh, h_[d][s % 2] + (b0 + b) * stride_, s_.H);
      }
    }
  }

  // tile = x W_ihT + b for rows of x.
  void input_product(int64_t d, int64_t block, int64_t row, int64_t rows, Acc* tile) {
    const Acc* bias = bias_[d] + block * kTileWidth;
    if (p_.ids) {
      const Acc* table = id_table(d, block);
      for (int64_t r = 0; r < rows; ++r, tile += kTileWidth)
        for (int64_t j = 0; j < kTileWidth; j += kLanes)
          store(tile + j, load<V>(table + p_.ids[row + r] * kTileWidth + j) + load<V>(bias + j));
      return;
    }
    const auto* x = reinterpret_cast<const Unit*>(static_cast<const Elem*>(p_.x) + row * s_.I);
    for (int half = 0; half < 2; ++half)
      product<E>(rows, input_units_, {x, input_units_}, input_panel(d, block, half),
                 {tile + half * kPanel<E>, kTileWidth, kLanes}, {bias + half * kPanel<E>, 0, kLanes});
  }

  // The cells of one block, some rows at a time: first all their c, then all their h. One row after the other
  // would wait for its own exponentials, one after the other.
  void cells(int64_t s, int64_t d, int64_t block, int64_t b0, int64_t count, const Acc* tile) {
    constexpr int64_t kTogether = 8;
    const Step& now = steps_[d][s];
    const int64_t unit = block * kLanes, H = s_.H;
    const int width = lanes_of(block);
    // Sequences from here on do not go on: this is their last step.
    const int64_t going_on = s + 1 < s_.T ? steps_[d][s + 1].continued : 0;
    for (int64_t first = b0; first < b0 + count; first += kTogether) {
      const int64_t last = std::min(first + kTogether, b0 + count);
      V o[kTogether], c[kTogether];
      for (int64_t b = first; b < last; ++b, tile += kTileWidth) {
        Gates<V> a{load<V>(tile), load<V>(tile + kLanes), load<V>(tile + 2 * kLanes), load<V>(tile + 3 * kLanes)};
        Acc* state = c_[d] + b * stride_ + unit;
        V c_t = load<V>(state);
        cell_state<VectorMath>(a, c_t);
        store(state, c_t);
        o[b - first] = a.o;
        c[b - first] = c_t;
        if (!p_.c) continue;
        const int64_t row = d * s_.N + now.row + b;
        Elem* gates = static_cast<Elem*>(p_.gates) + row * 4 * H + unit;
        store_elems<E>(gates, a.i, width);
        store_elems<E>(gates + H, a.f, width);
        store_elems<E>(gates + 2 * H, a.g, width);
        store_elems<E>(gates + 3 * H, a.o, width);
        store_elems<Wide<E>>(static_cast<Acc*>(p_.c) + row * H + unit, c_t, width);
      }
      for (int64_t b = first; b < last; ++b) {
        const V h = cell_output<VectorMath>(o[b - first], c[b - first]);
        // Lanes beyond H stay zero: with an infinite input they would hold NaN, and NaN * 0 spreads.
        store_elems<E>(h_[d][(s + 1) % 2] + b * stride_ + unit, h, width);
        store_elems<E>(static_cast<Elem*>(p_.y) + ((now.row + b) * s_.D + d) * H + unit, h, width);
        if (b < going_on) continue;
        const int64_t end = (d * s_.B + b) * H + unit;
        store_elems<E>(static_cast<Elem*>(p_.h_n) + end, h, width);
        store_elems<E>(static_cast<Elem*>(p_.c_n) + end, c[b - first], width);
      }
    }
  }

  int lanes_of(int64_t block) const { return static_cast<int>(std::min<int64_t>(kLanes, s_.H - block * kLanes)); }
  // Panels lie in the order of their use: when a step takes both products, a block's W_ih before its W_hh;
  // when W_ih serves a chunk of steps, all of W_ih before all of W_hh.
  Unit* input_panel(int64_t d, int64_t block, int half) const {
    const int64_t before = block * kBlockPanels * (input_units_ + (chunk_ > 1 ? 0 : hidden_units_));
    return w_[d] + (before + half * input_units_) * kPanel<E>;
  }
  Unit* hidden_panel(int64_t d, int64_t block, int half) const {
    const int64_t inputs = chunk_ > 1 ? blocks_ : block + 1, others = block;
    return w_[d] + (kBlockPanels * (inputs * input_units_ + others * hidden_units_) + half * hidden_units_) * kPanel<E>;
  }
  // Columns of W_ih by id, in the accumulation type, in the place of the input panels.
  Acc* id_table(int64_t d, int64_t block) const { return reinterpret_cast<Acc*>(input_panel(d, block, 0)); }

  const LayerForward& p_;
  const LayerShape s_;
  const int threads_;
  const int64_t blocks_, stride_, input_units_, hidden_units_;
  const bool direct_;
  const int64_t chunk_, splits_;
  int64_t tile_size_;
  Workspace memory_;
  Step* steps_[2];
  Unit* w_[2];
  Acc* bias_[2];
  Elem* h_[2][2];  // the state, double-buffered: other threads still read the old one
  Acc* c_[2];
  Acc* tiles_;
};

}  // namespace
}  // namespace fusedlstm::cpu
