// Text of B streams, a character after the other, in one launch of a cooperative grid. For each stream, and layer l:
//
//   [i f g o] = act(table[id before] or bias_l + h_{l-1} W_ih^T + h_l W_hh^T)       c_l, h_l: ../cell.h
//   logits = h_{L-1} W_dec^T + b_dec       id: draw.cuh
//
// A block keeps the weights of its quads (generate.h) in shared memory as far as they go; the rest is read from L2. The
// lanes of a warp cut K among them, and one lane for each stream adds up their sums and has the cell. Blocks meet once
// a layer and once for the logits. A layer multiplies its own h before it waits for what the layer below, or the draw,
// makes of this character: most of the products are made while the others' h is on its way. Sums, c, h and logits are
// float32; only weights may be bfloat16.
//
// A warp's matrices, one after the other: W_hh of layer 0; W_ih, W_hh of each layer above; its quads of the decoder. A
// step along K of one is 4 rows of 32 lanes of 16 bytes: PARTS times four numbers, of which part p of lane l is
// K = 128 (PARTS step + p) + 4 l.
#pragma once
#include "../cell.h"
#include "draw.cuh"
#include "exchange.cuh"

namespace fusedlstm::gpu {

constexpr int LANES = 33;  // of a stream's sums, one more than there are: so no two streams are in the same bank

template <class Precision>
constexpr int PARTS = 4 / sizeof(typename Precision::E);

FUSEDLSTM_INLINE int quads_of(const GenerateSizes& n) { return (n.V + 3) / 4; }
// The decoder's quads of a block, at most.
FUSEDLSTM_INLINE int block_quads(const GenerateSizes& n) { return (quads_of(n) + n.slices - 1) / n.slices; }
// Quads of the largest piece that a block gives away.
FUSEDLSTM_INLINE int piece_quads(const GenerateSizes& n) {
  return block_quads(n) > n.units / 4 ? block_quads(n) : n.units / 4;
}

// Where things lie in a block's shared memory, in bytes from its beginning.
struct GenerateShared {
  int h, width;      // float [L, STREAMS, width]: h of all units, zeros beyond them
  int c;             // float [L, units, STREAMS]: its number of the layer is no constant, which registers want
  int sums;          // float4 [units, STREAMS, LANES]
  int stage;         // float4 [piece_quads, STREAMS]
  int p, left;       // float [STREAMS, 4 * quads_of] each
  int parts;         // float [STREAMS, 32]
  int uniform, ids;  // [STREAMS] each
  int weights;       // uint4 [units, kept, 4, 32]
  int bytes;
};

FUSEDLSTM_INLINE GenerateShared generate_shared(const GenerateSizes& n, int streams, int parts) {
  GenerateShared s = {};
  s.width = ceil_to(n.H, 128 * parts);
  s.sums = s.h + n.L * streams * s.width * 4;
  s.stage = s.sums + n.units * streams * LANES * 16;
  s.p = s.stage + piece_quads(n) * streams * 16;
  s.left = s.p + streams * quads_of(n) * 16;
  s.c = s.left + streams * quads_of(n) * 16;
  s.parts = s.c + n.L * n.units * streams * 4;
  s.uniform = s.parts + streams * 32 * 4;
  s.ids = s.uniform + streams * 4;
  s.weights = ceil_to(s.ids + streams * 4, 16);
  s.bytes = s.weights + n.units * n.kept * 4 * 32 * 16;
  return s;
}

// In a round each block gives a piece to all, and goes on when it has the pieces of all. What may be overwritten when:
// a block gives its piece of round r + 1 only when it has all of round r, which others gave when they had all of round
// r - 1. So two buffers are enough, and one stage: it is written after a meeting behind its last reading.
template <int STREAMS>
struct Rounds {
  uint4* mail;  // [2, slices, room]
  uint32_t* flags;
  const uint4* stage;
  int slices, slice, room;

  FUSEDLSTM_DEVICE uint4* piece(uint32_t round, int of) const {
    return mail + (int64_t(round % 2) * slices + of) * room;
  }
  // Gives away what lies in the stage; the first warp does, and the others go on.
  FUSEDLSTM_DEVICE void give(uint32_t round, int quads) const {
    sync_threads();
    if (threadIdx.x >= 32) return;
    for (int k = threadIdx.x; k < quads * STREAMS; k += 32) store_16_to_l2(piece(round, slice) + k, stage[k]);
    sync_some(1, 32);
    if (threadIdx.x == 0) store_release(flags + slice, round);
  }
  // Brings each quad of each block and stream to put(block, quad, stream, numbers).
  template <class Put>
  FUSEDLSTM_DEVICE void take(uint32_t round, int quads, const Put& put) const {
    for (int from = threadIdx.x; from < slices; from += blockDim.x) {
      while (load_acquire(flags + from) < round) {
      }
      for (int k = 0; k < quads * STREAMS; ++k) {
        const uint4 v = load_16_from_l2(piece(round, from) + k);
        put(from, k / STREAMS, k % STREAMS, make_float4(as_float(v.x), as_float(v.y), as_float(v.z), as_float(v.w)));
      }
    }
    sync_threads();
  }
};

// Four numbers of a lane's 16 bytes.
FUSEDLSTM_DEVICE float4 four(Fp32, const uint4& w, int) {
  return make_float4(as_float(w.x), as_float(w.y), as_float(w.z), as_float(w.w));
}
FUSEDLSTM_DEVICE float4 four(Bf16, const uint4& w, int part) {
  const uint32_t first = part ? w.z : w.x, second = part ? w.w : w.y;
  return make_float4(as_float(first << 16), as_float(first & 0xFFFF0000), as_float(second << 16),
                     as_float(second & 0xFFFF0000));
}

// Adds to the sums of four rows, for each stream, this lane's part of some steps along K.
template <class Precision, int STREAMS>
FUSEDLSTM_DEVICE void multiply(float (&sum)[STREAMS][4], const uint4* weights, const float* x, int width, int steps) {
#pragma unroll 2
  for (int k = 0; k < steps; ++k, weights += 4 * 32, x += PARTS<Precision> * 128) {
    const uint4 rows[4] = {weights[0], weights[32], weights[64], weights[96]};
#pragma unroll
    for (int part = 0; part < PARTS<Precision>; ++part)
#pragma unroll
      for (int b = 0; b < STREAMS; ++b) {
        const float4 v = *reinterpret_cast<const float4*>(x + b * width + part * 128);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float4 w = four(Precision(), rows[r], part);
          sum[b][r] += w.x * v.x;
          sum[b][r] += w.y * v.y;
          sum[b][r] += w.z * v.z;
          sum[b][r] += w.w * v.w;
        }
      }
  }
}

template <class Precision, int STREAMS, int THREADS>
FUSEDLSTM_KERNEL(THREADS)
lstm_generate_kernel(GenerateArgs a) {
  const GenerateSizes& n = a.sizes;
  const GenerateShared at = generate_shared(n, STREAMS, PARTS<Precision>);
  unsigned char* shared = dynamic_shared();
  const int slice = blockIdx.x, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int unit = slice * n.units + warp, quads = quads_of(n), turns = (block_quads(n) + n.units - 1) / n.units;
  const int steps = at.width / (PARTS<Precision> * 128), all_steps = (2 * n.L - 1 + turns) * steps;
  auto h_of = [&](int l) { return reinterpret_cast<float*>(shared + at.h) + l * STREAMS * at.width; };
  auto c_of = [&](int l) -> float& {
    return reinterpret_cast<float*>(shared + at.c)[(l * n.units + warp) * STREAMS + lane];
  };
  float4 *sums = reinterpret_cast<float4*>(shared + at.sums) + warp * STREAMS * LANES,
         *stage = reinterpret_cast<float4*>(shared + at.stage);
  const Drawing drawing = {reinterpret_cast<float*>(shared + at.p),
                           reinterpret_cast<float*>(shared + at.left),
                           4 * quads,
                           reinterpret_cast<float*>(shared + at.parts),
                           reinterpret_cast<float*>(shared + at.uniform),
                           reinterpret_cast<int*>(shared + at.ids)};
  const Rounds<STREAMS> rounds = {
      static_cast<uint4*>(a.mail), a.flags, reinterpret_cast<uint4*>(stage), n.slices, slice, piece_quads(n) * STREAMS};

  // What stays. A lane reads no weights but its own, so no meeting is needed for them.
  const uint4* far = static_cast<const uint4*>(a.weights) + (int64_t(slice) * n.units + warp) * all_steps * 128 + lane;
  uint4* near = reinterpret_cast<uint4*>(shared + at.weights) + warp * n.kept * 128 + lane;
  for (int k = 0; k < n.kept * 4; ++k) near[k * 32] = far[k * 32];
  for (int k = thread; k < n.L * STREAMS * at.width; k += blockDim.x) {
    const int l = k / at.width / STREAMS, b = k / at.width % STREAMS, u = k % at.width;
    h_of(0)[k] = b < n.B && u < n.H ? a.h[(int64_t(l) * n.B + b) * n.H + u] : 0.0f;
  }
  const bool mine = lane < n.B && unit < n.H;  // a state of the caller's
  if (lane < STREAMS)
    for (int l = 0; l < n.L; ++l) c_of(l) = mine ? a.c[(int64_t(l) * n.B + lane) * n.H + unit] : 0.0f;
  if (thread < STREAMS) drawing.ids[thread] = thread < n.B ? static_cast<int>(a.last[thread]) : 0;
  sync_threads();

  float sum[STREAMS][4];
  auto begin = [&] {
#pragma unroll
    for (int b = 0; b < STREAMS; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[b][r] = 0.0f;
  };
  auto add_product = [&](int matrix, const float* x) {
    const int first = matrix * steps, left = n.kept - first, here = left < 0 ? 0 : left < steps ? left : steps;
    multiply<Precision>(sum, near + first * 128, x + lane * 4, at.width, here);
    multiply<Precision>(sum, far + (first + here) * 128, x + here * PARTS<Precision> * 128 + lane * 4, at.width,
                        steps - here);
  };
  // The four rows' sums of all lanes, for stream `lane`.
  auto end = [&] {
#pragma unroll
    for (int b = 0; b < STREAMS; ++b) sums[b * LANES + lane] = make_float4(sum[b][0], sum[b][1], sum[b][2], sum[b][3]);
    sync_threads();
    float4 all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (lane < STREAMS)
#pragma unroll 8
      for (int k = 0; k < 32; ++k) {
        const float4 part = sums[lane * LANES + k];
        all = make_float4(all.x + part.x, all.y + part.y, all.z + part.z, all.w + part.w);
      }
    return all;
  };
  auto take_h = [&](uint32_t round, int l) {
    rounds.take(round, n.units / 4, [&](int from, int quad, int b, float4 v) {
      const int u = from * n.units + quad * 4;
      if (u < at.width) *reinterpret_cast<float4*>(h_of(l) + b * at.width + u) = v;
    });
  };
  auto draw_next = [&](uint32_t round, int64_t s) {
    if (thread < n.B) drawing.uniform[thread] = uniform(a.choice.seed, thread, static_cast<uint64_t>(a.first + s));
    rounds.take(round, block_quads(n), [&](int from, int k, int b, float4 v) {
      const int quad = k * n.slices + from;
      if (quad < quads) reinterpret_cast<float4*>(drawing.p)[b * quads + quad] = v;
    });
    draw(a.choice, n.B, n.V, drawing);
    if (slice == 0 && thread < n.B) a.ids[s * n.B + thread] = drawing.ids[thread];
  };

  uint32_t round = 0;  // the last one given
  for (int64_t s = 0; s < a.count; ++s) {
    for (int l = 0; l < n.L; ++l) {
      begin();
      add_product(2 * l, h_of(l));
      if (l > 0) {
        take_h(round, l - 1);
        add_product(2 * l - 1, h_of(l - 1));
      } else if (s > 0) {
        draw_next(round, s - 1);
      }
      float4 input = make_float4(0.0f, 0.0f, 0.0f, 0.0f);  // on its way while the sums are made
      if (lane < STREAMS && unit < n.H) {
        const float* row = l ? a.bias + int64_t(l - 1) * n.H * 4 : a.table + int64_t(drawing.ids[lane]) * n.H * 4;
        input = reinterpret_cast<const float4*>(row)[unit];
      }
      const float4 z = end();
      if (lane < STREAMS) {
        Gates<float> gates = {z.x + input.x, z.y + input.y, z.z + input.z, z.w + input.w};
        cell_state<CellMath<Fp32>>(gates, c_of(l));
        reinterpret_cast<float*>(stage + warp / 4 * STREAMS + lane)[warp % 4] =
            cell_output<CellMath<Fp32>>(gates.o, c_of(l));
      }
      rounds.give(++round, n.units / 4);
    }
    take_h(round, n.L - 1);
    for (int turn = 0; turn < turns; ++turn) {
      const int k = turn * n.units + warp, quad = k * n.slices + slice;
      begin();
      if (quad < quads) add_product(2 * n.L - 1 + turn, h_of(n.L - 1));
      const float4 z = end();
      if (quad < quads && lane < STREAMS) {
        const float4 bias = reinterpret_cast<const float4*>(a.decoder_bias)[quad];
        stage[k * STREAMS + lane] = make_float4(z.x + bias.x, z.y + bias.y, z.z + bias.z, z.w + bias.w);
      }
      sync_threads();
    }
    rounds.give(++round, block_quads(n));
  }
  draw_next(round, a.count - 1);

  if (mine)
    for (int l = 0; l < n.L; ++l) {
      const int64_t state = (int64_t(l) * n.B + lane) * n.H + unit;
      a.h[state] = h_of(l)[lane * at.width + unit], a.c[state] = c_of(l);
    }
  if (slice == 0 && thread < n.B) a.last[thread] = drawing.ids[thread];
}

}  // namespace fusedlstm::gpu
