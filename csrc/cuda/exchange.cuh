// How blocks that share a tile's hidden units give each other what they made: h in the forward, sums of dh in the
// backward. Three ways: within one block; within a cluster, by stores into the other blocks' shared memory that
// complete an mbarrier there; within a cooperative grid, through L2 and a flag of each block.
//
// Forward: put() and give() bring h after step s to every block of the tile, wait(s) returns where h before step s
// lies. Backward: send() brings a piece of dh to the block that owns its units, gather() adds up what came. What may be
// overwritten when: a block gives h of step s + 1 away after it has all of step s, and others gave that after a meeting
// of their threads behind the product of step s. So a buffer of two steps ago is free. The same holds for the pieces of
// dh. A stage, and the operand of the backward's product, are free again after a later meeting.
#pragma once
#include "../cell.h"
#include "place.cuh"

namespace fusedlstm::gpu {

// Where things lie in a block's shared memory, in bytes from its beginning.
struct ForwardShared {
  int h, h_row, h_buffer;  // operand [TILE, slices * units]: begin, bytes of a row, of a buffer
  int stage, stage_row;    // the block's own h [TILE, units] on its way to others
  int sums;                // float4 [groups, PAIRS, KS, 32] on their way within a group
  int weights;             // uint4 [steps, 2, warps, 32]: what does not fit in registers
  int bars;                // two mbarriers
  int bytes;
};

struct BackwardShared {
  int dgates, dgates_row, dgates_buffer;  // operand [TILE, 4 * units]
  int pieces;                             // float4 [buffers, sources, groups, 32]
  int sums;                               // float4 [groups, KS, 32]
  int weights;                            // uint4 [tiles, steps, warps, 32]
  int bars;
  int bytes;
};

FUSEDLSTM_INLINE constexpr int ceil_to(int value, int unit) { return (value + unit - 1) / unit * unit; }

FUSEDLSTM_DEVICE int tiles_of(const Sizes& n) { return static_cast<int>((n.B + TILE - 1) / TILE); }

// ---- one block has all hidden units

template <class Precision>
struct BlockForward {
  static constexpr const char* REGIME = "block";
  static constexpr bool CLUSTER = false;
  static constexpr int H_BUFFERS = 2, STAGES = 0;
  using E = typename Precision::E;
  unsigned char* shared;
  const ForwardShared& at;

  FUSEDLSTM_DEVICE BlockForward(const Sizes&, const Mail&, const Place&, unsigned char* shared, const ForwardShared& at)
      : shared(shared), at(at) {}
  FUSEDLSTM_DEVICE unsigned char* buffer(int64_t s) const { return shared + at.h + s % 2 * at.h_buffer; }
  FUSEDLSTM_DEVICE const unsigned char* wait(int64_t s) const { return buffer(s); }
  FUSEDLSTM_DEVICE void put(int64_t s, int column, int unit, E h) const {
    reinterpret_cast<E*>(buffer(s + 1) + column * at.h_row)[unit] = h;
  }
  FUSEDLSTM_DEVICE void give(int64_t) const { sync_threads(); }
};

template <class Precision>
struct BlockBackward {
  static constexpr const char* REGIME = "block";
  static constexpr bool CLUSTER = false;
  static constexpr int DGATES_BUFFERS = 1, PIECE_BUFFERS = 1;
  static constexpr bool SUMS = false;
  static FUSEDLSTM_INLINE int sources(const Sizes&, int k_splits) { return k_splits; }
  float4* pieces;
  int groups, splits;
  const Place& me;

  FUSEDLSTM_DEVICE BlockBackward(const Sizes& n, const Mail&, const Place& me, unsigned char* shared,
                                 const BackwardShared& at, int k_splits)
      : pieces(reinterpret_cast<float4*>(shared + at.pieces)), groups(n.units / 8), splits(k_splits), me(me) {}
  FUSEDLSTM_DEVICE void send(int64_t, int k_split, int eighth, float4 piece) const {
    pieces[(k_split * groups + eighth) * 32 + me.lane] = piece;
  }
  template <int KS>
  FUSEDLSTM_DEVICE void gather(int64_t, float (&dh)[PER_WARP<KS>]) const {
    sync_threads();
#pragma unroll
    for (int i = 0; i < PER_WARP<KS>; ++i) dh[i] = 0.0f;
    for (int source = 0; source < splits; ++source)
      add_pairs<KS>(dh, pieces[(source * groups + me.group) * 32 + me.lane], me.split);
  }
};

// ---- the blocks of a cluster, which lie along x

// Two mbarriers, for the odd and the even steps; each phase is over when so many bytes have come.
struct Arrivals {
  uint64_t* bars;
  uint32_t bytes;

  FUSEDLSTM_DEVICE Arrivals(uint64_t* bars, uint32_t bytes) : bars(bars), bytes(bytes) {
    if (threadIdx.x == 0) {
      mbarrier_init(&bars[0], 1);
      mbarrier_init(&bars[1], 1);
      mbarrier_init_done();
      mbarrier_arrive_expect(&bars[0], bytes);
      mbarrier_arrive_expect(&bars[1], bytes);
    }
    cluster_sync();
  }
  // For the k-th arrival, from 0; then the next but one is expected.
  FUSEDLSTM_DEVICE void wait(int64_t k) const {
    mbarrier_wait(&bars[k % 2], static_cast<uint32_t>(k / 2 % 2));
    if (threadIdx.x == 0) mbarrier_arrive_expect(&bars[k % 2], bytes);
  }
};

template <class Precision>
struct ClusterForward {
  static constexpr const char* REGIME = "cluster";
  static constexpr bool CLUSTER = true;
  static constexpr int H_BUFFERS = 2, STAGES = 2;
  using E = typename Precision::E;
  const Sizes& n;
  const Place& me;
  unsigned char* shared;
  const ForwardShared& at;
  Arrivals arrivals;

  FUSEDLSTM_DEVICE ClusterForward(const Sizes& n, const Mail&, const Place& me, unsigned char* shared,
                                  const ForwardShared& at)
      : n(n),
        me(me),
        shared(shared),
        at(at),
        arrivals(reinterpret_cast<uint64_t*>(shared + at.bars), n.slices * TILE * at.stage_row) {}
  FUSEDLSTM_DEVICE unsigned char* stage(int64_t s) const { return shared + at.stage + s % 2 * TILE * at.stage_row; }
  FUSEDLSTM_DEVICE const unsigned char* wait(int64_t s) const {
    if (s > 0) arrivals.wait(s - 1);
    return shared + at.h + s % 2 * at.h_buffer;
  }
  FUSEDLSTM_DEVICE void put(int64_t s, int column, int unit, E h) const {
    reinterpret_cast<E*>(stage(s) + column * at.stage_row)[unit] = h;
  }
  FUSEDLSTM_DEVICE void give(int64_t s) const {
    sync_threads();
    if (s + 1 == n.T) return;
    const int per_row = at.stage_row / 16, chunks = TILE * per_row;
    unsigned char* to = shared + at.h + (s + 1) % 2 * at.h_buffer + me.slice * at.stage_row;
    for (int k = threadIdx.x; k < chunks * n.slices; k += blockDim.x) {
      const int chunk = k % chunks, rank = (k / chunks + me.slice) % n.slices;
      const uint4 v = reinterpret_cast<const uint4*>(stage(s))[chunk];
      store_async(remote(to + chunk / per_row * at.h_row + chunk % per_row * 16, rank), v,
                  remote(&arrivals.bars[s % 2], rank));
    }
  }
};

template <class Precision>
struct ClusterBackward {
  static constexpr const char* REGIME = "cluster";
  static constexpr bool CLUSTER = true;
  static constexpr int DGATES_BUFFERS = 2, PIECE_BUFFERS = 2;
  static constexpr bool SUMS = false;
  static FUSEDLSTM_INLINE int sources(const Sizes& n, int k_splits) { return n.slices * k_splits; }
  float4* pieces;
  int groups, all, k_splits;
  const Place& me;
  Arrivals arrivals;

  FUSEDLSTM_DEVICE ClusterBackward(const Sizes& n, const Mail&, const Place& me, unsigned char* shared,
                                   const BackwardShared& at, int k_splits)
      : pieces(reinterpret_cast<float4*>(shared + at.pieces)),
        groups(n.units / 8),
        all(n.slices * k_splits),
        k_splits(k_splits),
        me(me),
        arrivals(reinterpret_cast<uint64_t*>(shared + at.bars), n.slices * k_splits * (n.units / 8) * 512) {}
  FUSEDLSTM_DEVICE float4* from(int64_t k, int source, int group) const {
    return pieces + ((k % 2 * all + source) * groups + group) * 32 + me.lane;
  }
  FUSEDLSTM_DEVICE void send(int64_t k, int k_split, int eighth, float4 piece) const {
    const int rank = eighth / groups;
    store_async(remote(from(k, me.slice * k_splits + k_split, eighth % groups), rank),
                make_uint4(as_bits(piece.x), as_bits(piece.y), as_bits(piece.z), as_bits(piece.w)),
                remote(&arrivals.bars[k % 2], rank));
  }
  template <int KS>
  FUSEDLSTM_DEVICE void gather(int64_t k, float (&dh)[PER_WARP<KS>]) const {
    arrivals.wait(k);
#pragma unroll
    for (int i = 0; i < PER_WARP<KS>; ++i) dh[i] = 0.0f;
    for (int source = 0; source < all; ++source) add_pairs<KS>(dh, *from(k, source, me.group), me.split);
  }
};

// ---- the blocks of a cooperative grid

// The flags of the blocks that share a tile; a flag counts the steps that its block has given.
struct Flags {
  uint32_t* flags;
  int slices, slice;

  FUSEDLSTM_DEVICE Flags(const Sizes& n, const Mail& mail, const Place& me)
      : flags(mail.flags + (me.d * tiles_of(n) + me.tile) * n.slices), slices(n.slices), slice(me.slice) {}
  // After a meeting of the threads that wrote what is given.
  FUSEDLSTM_DEVICE void raise(int64_t count) const {
    if (threadIdx.x == 0) store_release(flags + slice, static_cast<uint32_t>(count));
  }
  FUSEDLSTM_DEVICE void wait(int64_t count) const {
    for (int k = threadIdx.x; k < slices; k += blockDim.x)
      while (load_acquire(flags + k) < static_cast<uint32_t>(count)) {
      }
    sync_threads();
  }
};

template <class Precision>
struct GridForward {
  static constexpr const char* REGIME = "grid";
  static constexpr bool CLUSTER = false;
  static constexpr int H_BUFFERS = 1, STAGES = 1;
  using E = typename Precision::E;
  const Sizes& n;
  const Place& me;
  unsigned char* shared;
  const ForwardShared& at;
  unsigned char* data;
  Flags flags;

  FUSEDLSTM_DEVICE GridForward(const Sizes& n, const Mail& mail, const Place& me, unsigned char* shared,
                               const ForwardShared& at)
      : n(n), me(me), shared(shared), at(at), data(static_cast<unsigned char*>(mail.data)), flags(n, mail, me) {}
  // h of a tile before step s, slice by slice, as it lies in the slices' stages.
  FUSEDLSTM_DEVICE unsigned char* mail(int64_t s) const {
    return data + ((s % 2 * n.D + me.d) * tiles_of(n) + me.tile) * n.slices * TILE * at.stage_row;
  }
  FUSEDLSTM_DEVICE const unsigned char* wait(int64_t s) const {
    if (s > 0) {
      flags.wait(s);
      const int per_row = at.stage_row / 16, chunks = TILE * per_row;
      for (int k = threadIdx.x; k < chunks * n.slices; k += blockDim.x) {
        const int slice = k / chunks, row = k % chunks / per_row, chunk = k % per_row;
        *reinterpret_cast<uint4*>(shared + at.h + row * at.h_row + slice * at.stage_row + chunk * 16) =
            load_16_from_l2(mail(s) + k * 16);
      }
      sync_threads();
    }
    return shared + at.h;
  }
  FUSEDLSTM_DEVICE void put(int64_t, int column, int unit, E h) const {
    reinterpret_cast<E*>(shared + at.stage + column * at.stage_row)[unit] = h;
  }
  FUSEDLSTM_DEVICE void give(int64_t s) const {
    sync_threads();
    if (s + 1 == n.T) return;
    const int bytes = TILE * at.stage_row;
    for (int k = threadIdx.x; k < bytes / 16; k += blockDim.x)
      store_16_to_l2(mail(s + 1) + me.slice * bytes + k * 16, reinterpret_cast<const uint4*>(shared + at.stage)[k]);
    sync_threads();
    flags.raise(s + 1);
  }
};

template <class Precision>
struct GridBackward {
  static constexpr const char* REGIME = "grid";
  static constexpr bool CLUSTER = false;
  static constexpr int DGATES_BUFFERS = 1, PIECE_BUFFERS = 0;
  static constexpr bool SUMS = true;
  static FUSEDLSTM_INLINE int sources(const Sizes&, int) { return 0; }
  const Sizes& n;
  const Place& me;
  float4* data;
  float4* sums;
  int groups, k_splits;
  Flags flags;

  FUSEDLSTM_DEVICE GridBackward(const Sizes& n, const Mail& mail, const Place& me, unsigned char* shared,
                                const BackwardShared& at, int k_splits)
      : n(n),
        me(me),
        data(static_cast<float4*>(mail.data)),
        sums(reinterpret_cast<float4*>(shared + at.sums)),
        groups(n.units / 8),
        k_splits(k_splits),
        flags(n, mail, me) {}
  // float4 [2, D, tiles, receivers, sources, groups, 32]
  FUSEDLSTM_DEVICE float4* mail(int64_t k, int receiver, int source, int group) const {
    const int64_t row = ((k % 2 * n.D + me.d) * tiles_of(n) + me.tile) * n.slices + receiver;
    return data + ((row * n.slices * k_splits + source) * groups + group) * 32 + me.lane;
  }
  FUSEDLSTM_DEVICE void send(int64_t k, int k_split, int eighth, float4 piece) const {
    store_16_to_l2(mail(k, eighth / groups, me.slice * k_splits + k_split, eighth % groups),
                   make_uint4(as_bits(piece.x), as_bits(piece.y), as_bits(piece.z), as_bits(piece.w)));
  }
  template <int KS>
  FUSEDLSTM_DEVICE void gather(int64_t k, float (&dh)[PER_WARP<KS>]) const {
    sync_threads();
    flags.raise(k + 1);
    flags.wait(k + 1);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int source = me.split; source < n.slices * k_splits; source += KS) {
      const uint4 v = load_16_from_l2(mail(k, me.slice, source, me.group));
      sum = make_float4(sum.x + as_float(v.x), sum.y + as_float(v.y), sum.z + as_float(v.z), sum.w + as_float(v.w));
    }
    float4* shares = sums + me.group * KS * 32 + me.lane;
    shares[me.split * 32] = sum;
    sync_some(1 + me.group, 32 * KS);
#pragma unroll
    for (int i = 0; i < PER_WARP<KS>; ++i) dh[i] = 0.0f;
    for (int share = 0; share < KS; ++share) add_pairs<KS>(dh, shares[share * 32], me.split);
  }
};

}  // namespace fusedlstm::gpu
