// The generator's steps: all layers, the decoder and the draw of one character after the other.
//
//   a = table[id] in layer 0, else b + h_below W_ihT;  a = a + h W_hhT      [B, 4H]
//   (i, f, g, o), c, h = cell(a, c)                                         [B, H]
//   logits = h_top W_decT + b_dec                                           [B, V]
//
// A few streams do two operations with every weight that they read, so that the bytes of the weights are the
// time. They are packed once, in the order of their use, and narrowed if asked: bfloat16 is widened on its way
// to float32 sums; int8 is multiplied with h as int16 and summed in int32, which rounds nowhere, and each sum
// is scaled to float32. Blocks, panels and cells are those of forward.h: one barrier a layer, one for the
// logits, one for the draw. A stream's numbers do not depend on the threads or on how many steps a call takes.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "generator.h"
#include "layout.h"
#include "memory.h"
#include "share.h"

namespace fusedlstm::cpu {
namespace {

// ---------------------------------------------------------------- weights that differ from the states in type

struct WideBF16 {
  using Elem = uint16_t;
  using Acc = float;
  using Unit = uint32_t;
  struct LeftUnit {
    float even, odd;
  };
  static constexpr int kPair = 2;
};
struct Int8 {
  using Elem = int8_t;
  using Acc = int32_t;
  using Unit = uint32_t;
  struct LeftUnit {
    uint32_t first, second;  // pairs of int16
  };
  static constexpr int kPair = 4;
};

// Where in its unit an element of the right operand lies: the even bytes of int8 are its first two.
template <class E>
constexpr int place_in_unit(int i) {
  if constexpr (std::is_same_v<E, Int8>) return i == 1 ? 2 : i == 2 ? 1 : i;
  return i;
}

// What h is multiplied as.
template <class E>
using StateOf = std::conditional_t<std::is_same_v<E, Int8>, int16_t, float>;

template <>
struct Dot<WideBF16> {
  struct B {
    Vector<float> even, odd;
  };
  using A = WideBF16::LeftUnit;
  static FUSEDLSTM_ALWAYS_INLINE B read_b(const uint32_t* p) {
    const auto pair = load<Vector<uint32_t>>(p);
    return {bit_cast<Vector<float>>(pair << 16), bit_cast<Vector<float>>(pair & 0xffff0000u)};
  }
  static FUSEDLSTM_ALWAYS_INLINE A read_a(const A* p) { return *p; }
  static FUSEDLSTM_ALWAYS_INLINE void step(Vector<float>& acc, A a, const B& b) {
    acc += a.even * b.even;
    acc += a.odd * b.odd;
  }
};

// Pairs of int16 side by side, multiplied and added.
FUSEDLSTM_ALWAYS_INLINE Vector<int32_t> multiply_pairs(Vector<int16_t> a, Vector<int16_t> b) {
#if defined(__AVX512BW__)
  return bit_cast<Vector<int32_t>>(_mm512_madd_epi16(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<Vector<int32_t>>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return bit_cast<Vector<int32_t>>(_mm_madd_epi16(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  const auto x = bit_cast<Vector<int32_t>>(a), y = bit_cast<Vector<int32_t>>(b);
  return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

template <>
struct Dot<Int8> {
  struct B {
    Vector<int16_t> first, second;
  };
  using A = B;
  static FUSEDLSTM_ALWAYS_INLINE B read_b(const uint32_t* p) {
    const auto bytes = load<Vector<int16_t>>(p);
    return {bytes << 8 >> 8, bytes >> 8};
  }
  static FUSEDLSTM_ALWAYS_INLINE A read_a(const Int8::LeftUnit* p) {
    return {bit_cast<Vector<int16_t>>(splat<Vector<uint32_t>>(load<uint32_t>(&p->first))),
            bit_cast<Vector<int16_t>>(splat<Vector<uint32_t>>(load<uint32_t>(&p->second)))};
  }
  static FUSEDLSTM_ALWAYS_INLINE void step(Vector<int32_t>& acc, const A& a, const B& b) {
    acc += multiply_pairs(a.first, b.first);
    acc += multiply_pairs(a.second, b.second);
  }
};

// ---------------------------------------------------------------- the packed weights

constexpr int64_t kHalves = 2;  // panels of a block: i f, g o

// The matrices count from the first layer up, as in Stack: a layer has one, or two when one is below it.
template <class E>
class Packed final : public Generator {
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;

 public:
  static constexpr bool kScaled = std::is_same_v<E, Int8>;

  explicit Packed(const Stack& stack)
      : L(stack.L),
        V(stack.V),
        H(stack.H),
        blocks(ceil_div(H, kLanes<E>)),
        units(ceil_div(H, E::kPair)),
        logit_panels(ceil_div(V, kPanel<E>)),
        levels(static_cast<float>(std::min<int64_t>(INT16_MAX, INT32_MAX / (INT8_MAX * H)))) {
    const int64_t matrices = 2 * L - 1;
    memory_.reserve(panels_, matrices * blocks * kHalves * units * kPanel<E>);
    memory_.reserve(decoder_, logit_panels * units * kPanel<E>);
    memory_.reserve(table_, V * 4 * H);
    memory_.reserve(biases_, (L - 1) * 4 * H);
    memory_.reserve(decoder_bias, V);
    memory_.reserve(scales_, kScaled ? matrices * 4 * H : 0);
    memory_.reserve(decoder_scales, kScaled ? V : 0);
    memory_.allocate();
    for (int64_t l = 0; l < L; ++l)
      for (int64_t block = 0; block < blocks; ++block)
        for (int half = 0; half < kHalves; ++half)
          for (int source = 0; source < sources(l); ++source) {
            const auto row_of = [&](int j) {
              const int64_t unit = block * kLanes<E> + j % kLanes<E>;
              return unit < H ? (2 * half + j / kLanes<E>)*H + unit : -1;
            };
            const Elem* matrix = static_cast<const Elem*>(stack.weights) + (first(l) + source) * 4 * H * H;
            pack(matrix, row_of, panel(l, block, half, source));
          }
    for (int64_t j = 0; j < logit_panels; ++j) {
      const auto row_of = [&](int column) { return j * kPanel<E> + column < V ? j * kPanel<E> + column : -1; };
      pack(static_cast<const Elem*>(stack.decoder), row_of, decoder_ + j * units * kPanel<E>);
    }
    std::copy_n(stack.table, V * 4 * H, table_);
    std::copy_n(stack.biases, (L - 1) * 4 * H, biases_);
    std::copy_n(stack.decoder_bias, V, decoder_bias);
    if (!kScaled) return;
    for (int64_t i = 0; i < matrices * 4 * H; ++i) scales_[i] = stack.scales[i] / levels;
    for (int64_t i = 0; i < V; ++i) decoder_scales[i] = stack.decoder_scales[i] / levels;
  }

  void run(const Passage& passage, int threads) const override;

  // What a layer's products read: the states below and its own, or only its own.
  static int sources(int64_t l) { return l == 0 ? 1 : 2; }

  Unit* panel(int64_t l, int64_t block, int half, int source) const {
    const int64_t before = first(l) * blocks * kHalves + (block * kHalves + half) * sources(l) + source;
    return panels_ + before * units * kPanel<E>;
  }
  const Unit* logit_panel(int64_t j) const { return decoder_ + j * units * kPanel<E>; }
  // What the sums of a layer start from [4H].
  const float* start(int64_t l, int64_t id) const { return l == 0 ? table_ + id * 4 * H : biases_ + (l - 1) * 4 * H; }
  const float* scales(int64_t l, int source) const { return scales_ + (first(l) + source) * 4 * H; }

  const int64_t L, V, H;
  const int64_t blocks, units, logit_panels;
  const float levels;  // of int16 for an h of 1: no sum of H products leaves int32
  float* decoder_bias;
  float* decoder_scales;  // as scales(): of a product with h in levels

 private:
  static int64_t first(int64_t l) { return l == 0 ? 0 : 2 * l - 1; }

  // panel[k][j] = unit k of the matrix's row row_of(j); beyond the matrix zeros.
  template <class RowOf>
  void pack(const Elem* matrix, const RowOf& row_of, Unit* panel) const {
    for (int j = 0; j < kPanel<E>; ++j) {
      const int64_t row = row_of(j);
      for (int64_t k = 0; k < units; ++k) {
        Elem unit[E::kPair] = {};
        for (int i = 0; i < E::kPair; ++i)
          if (row >= 0 && k * E::kPair + i < H) unit[place_in_unit<E>(i)] = matrix[row * H + k * E::kPair + i];
        panel[k * kPanel<E> + j] = load<Unit>(unit);
      }
    }
  }

  Workspace memory_;
  Unit* panels_;
  Unit* decoder_;
  float* table_;
  float* biases_;
  float* scales_;
};

// ---------------------------------------------------------------- one call

template <class E>
class Generate {
  using Acc = typename E::Acc;
  using State = StateOf<E>;
  using V = Vector<float>;
  static constexpr int kLanes = cpu::kLanes<E>;
  static constexpr int64_t kTileWidth = 4 * kLanes;
  static constexpr int64_t kTogether = 8;  // cells

 public:
  Generate(const Packed<E>& packed, const Passage& passage, int threads)
      : w_(packed),
        p_(passage),
        threads_(static_cast<int>(
            std::clamp<int64_t>(p_.B * (2 * w_.L - 1) * 4 * w_.H * w_.H / kWorkPerThread, 1, threads))),
        group_(std::max<int64_t>(std::min(kTogether / p_.B, w_.blocks / (2 * threads_)), 1)),
        stride_(w_.blocks * kLanes),
        tile_size_(p_.B * kTileWidth),
        logits_stride_(w_.logit_panels * kPanel<E>) {
    memory_.reserve(states_, w_.L * 2 * p_.B * stride_);
    memory_.reserve(tiles_, threads_ * group_ * 2 * tile_size_);
    memory_.reserve(logits_, p_.B * logits_stride_);
    memory_.reserve(candidates_, threads_ * 2 * w_.V);
    memory_.allocate();
  }

  void run() {
    parallel(threads_, *this);
    std::copy_n(p_.ids + (p_.steps - 1) * p_.B, p_.B, p_.last);
  }

  void operator()(const Worker& worker) {
    Acc* tile = tiles_ + worker.rank * group_ * 2 * tile_size_;
    const int64_t groups = ceil_div(w_.blocks, group_);
    worker.for_each(w_.L * w_.blocks, [&](int64_t task) { begin(task / w_.blocks, task % w_.blocks); });
    for (int64_t s = 0; s < p_.steps; ++s) {
      for (int64_t l = 0; l < w_.L; ++l)
        worker.for_each(groups, [&](int64_t group) { step(s, l, group * group_, tile); }, s % 2 == 1);
      if (!p_.choice && !p_.nats) continue;
      worker.for_each(w_.logit_panels, [&](int64_t j) { decode(s, j, tile); });
      worker.for_each(p_.B, [&](int64_t b) { end(s, b, worker.rank); });
    }
  }

 private:
  void begin(int64_t l, int64_t block) {
    for (int64_t b = 0; b < p_.B; ++b) {
      const float* h = p_.h + (l * p_.B + b) * w_.H + block * kLanes;
      set_state(states(l, 0) + b * stride_ + block * kLanes, load_elems<F32>(h, lanes_of(block)));
    }
  }

  // A group of blocks: their products, then their cells, for one cell would wait for its own exponentials.
  void step(int64_t s, int64_t l, int64_t first, Acc* tile) {
    const int64_t end = std::min(first + group_, w_.blocks);
    for (int64_t block = first; block < end; ++block)
      for (int half = 0; half < kHalves; ++half)
        for (int source = 0; source < w_.sources(l); ++source) {
          const bool below = source + 1 < w_.sources(l);
          // Scaled sums lie apart, each row of each matrix having a scale of its own; others go on in one.
          Acc* out = tile_of(tile, block - first, Packed<E>::kScaled ? source : 0) + half * kPanel<E>;
          const Acc* before = Packed<E>::kScaled || source == 0 ? nullptr : out;
          multiply(below ? states(l - 1, s + 1) : states(l, s), w_.panel(l, block, half, source), out, kTileWidth,
                   before);
        }
    cells(s, l, first, end, tile);
  }

  // As in forward.h: first c of some cells, then their h.
  void cells(int64_t s, int64_t l, int64_t first, int64_t end, Acc* tile) {
    struct {
      int64_t b, unit;
      int width;
      V o, c;
    } cell[kTogether];
    int64_t block = first, b = 0;
    while (block < end) {
      int count = 0;
      for (; count < kTogether && block < end; ++count) {
        auto& now = cell[count];
        now.b = b;
        now.unit = block * kLanes;
        now.width = lanes_of(block);
        const float* start = w_.start(l, s == 0 ? p_.last[b] : p_.ids[(s - 1) * p_.B + b]) + now.unit;
        const Acc* sums = tile_of(tile, block - first, 0) + b * kTileWidth;
        Gates<V> a{sum(l, 0, now.unit, now.width, start, sums), sum(l, 1, now.unit, now.width, start, sums),
                   sum(l, 2, now.unit, now.width, start, sums), sum(l, 3, now.unit, now.width, start, sums)};
        float* state = p_.c + (l * p_.B + b) * w_.H + now.unit;
        now.c = load_elems<F32>(state, now.width);
        cell_state<VectorMath>(a, now.c);
        store_elems<F32>(state, now.c, now.width);
        now.o = a.o;
        if (++b < p_.B) continue;
        b = 0;
        ++block;
      }
      for (int i = 0; i < count; ++i) {
        const auto& now = cell[i];
        const V h = cell_output<VectorMath>(now.o, now.c);
        set_state(states(l, s + 1) + now.b * stride_ + now.unit, h);
        if (s + 1 == p_.steps) store_elems<F32>(p_.h + (l * p_.B + now.b) * w_.H + now.unit, h, now.width);
      }
    }
  }

  // The pre-activations of one gate.
  V sum(int64_t l, int gate, int64_t unit, int width, const float* start, const Acc* sums) const {
    V a = load_elems<F32>(start + gate * w_.H, width);
    for (int source = 0; source < (Packed<E>::kScaled ? w_.sources(l) : 1); ++source) {
      const auto product = load<Vector<Acc>>(sums + source * tile_size_ + gate * kLanes);
      if constexpr (Packed<E>::kScaled)
        a += scaled(product, load_elems<F32>(w_.scales(l, source) + gate * w_.H + unit, width));
      else
        a += product;
    }
    return a;
  }

  void decode(int64_t s, int64_t j, Acc* tile) {
    multiply(states(w_.L - 1, s + 1), w_.logit_panel(j), tile, kPanel<E>, nullptr);
    for (int64_t b = 0; b < p_.B; ++b)
      for (int64_t column = 0; column < kPanel<E>; column += kLanes) {
        const int64_t id = j * kPanel<E> + column;
        if (id >= w_.V) break;
        const int width = static_cast<int>(std::min<int64_t>(kLanes, w_.V - id));
        const auto product = load<Vector<Acc>>(tile + b * kPanel<E> + column);
        V logits = load_elems<F32>(w_.decoder_bias + id, width);
        if constexpr (Packed<E>::kScaled)
          logits += scaled(product, load_elems<F32>(w_.decoder_scales + id, width));
        else
          logits += product;
        store(logits_ + b * logits_stride_ + id, logits);
      }
  }

  // What becomes of a stream's logits.
  void end(int64_t s, int64_t b, int rank) {
    const float* logits = logits_ + b * logits_stride_;
    int64_t& id = p_.ids[s * p_.B + b];
    if (p_.choice) {
      const double at = uniform(p_.choice->seed, b, p_.position + s);
      id = draw(logits, w_.V, *p_.choice, at, candidates_ + rank * 2 * w_.V);
    }
    if (p_.nats) p_.nats[s * p_.B + b] = static_cast<float>(surprise(logits, w_.V, id));
  }

  void multiply(const State* h, const typename E::Unit* panel, Acc* out, int64_t stride, const Acc* before) const {
    const auto* left = reinterpret_cast<const typename E::LeftUnit*>(h);
    product<E>(p_.B, w_.units, {left, stride_ / E::kPair}, panel, {out, stride, kLanes}, {before, stride, kLanes});
  }

  void set_state(State* state, V h) const {
    if constexpr (Packed<E>::kScaled) {
      h = (h > 1 ? splat<V>(1.0f) : h < -1 ? splat<V>(-1.0f) : h) * w_.levels;
      const V half = h < 0 ? splat<V>(-0.5f) : splat<V>(0.5f);
      typedef int16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));
      store(state, __builtin_convertvector(__builtin_convertvector(h + half, Vector<int32_t>), Shorts));
    } else {
      store(state, h);
    }
  }

  static V scaled(Vector<Acc> product, V scales) { return __builtin_convertvector(product, V) * scales; }

  // Sums of a block of the group from one source: [B, 4 gates of a block].
  Acc* tile_of(Acc* tile, int64_t block, int source) const { return tile + (block * 2 + source) * tile_size_; }

  int lanes_of(int64_t block) const { return static_cast<int>(std::min<int64_t>(kLanes, w_.H - block * kLanes)); }

  // h of a layer [B, stride] before step s, double-buffered: other threads still read the old one.
  State* states(int64_t l, int64_t s) const { return states_ + (l * 2 + s % 2) * p_.B * stride_; }

  const Packed<E>& w_;
  const Passage& p_;
  const int threads_;
  const int64_t group_;  // blocks of a task: as few streams have too few cells in one
  const int64_t stride_, tile_size_, logits_stride_;
  Workspace memory_;
  State* states_;
  Acc* tiles_;
  float* logits_;
  Candidate* candidates_;
};

template <class E>
void Packed<E>::run(const Passage& passage, int threads) const {
  Generate<E>(*this, passage, threads).run();
}

}  // namespace
}  // namespace fusedlstm::cpu
