// Small kernels that use each primitive, and bugs planted in them, which the shim must find.
#include "cuda/primitives.cuh"

namespace {
using namespace fusedlstm::gpu;

#define BUGS                                                                                                   \
  none, no_barrier, past_shared, just_past_shared, past_global, before_global, just_past_global, leaves_early, \
      two_barriers, spins_plainly, flag_one_less, one_buffer, plain_release, no_wait, release_before_barrier,  \
      waits_for_nobody, few_bytes, many_bytes, parity, no_init, no_init_done, no_first_sync, late_store,       \
      unawaited_store, rank_too_high, others_mbarrier, extra_arrival, overwrites_mbarrier, half_warp,          \
      two_instructions, not_rounded, misaligned, skips_copy, same_barrier, barrier_count
enum Bug { BUGS };
#define TEXT(...) #__VA_ARGS__
#define TEXT_OF(...) TEXT(__VA_ARGS__)

// ---- y [blocks] = sums of x [blocks, threads]: shared memory and barriers

struct ReduceArgs {
  const float* x;
  float* y;
  int bug;
};

FUSEDLSTM_KERNEL(256) reduce_kernel(ReduceArgs args) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());
  const unsigned thread = threadIdx.x, threads = blockDim.x;
  const size_t i = size_t{blockIdx.x} * threads + thread, end = size_t{gridDim.x} * threads;
  sums[thread] = args.x[i];
  if (i + 1 == end) {
    if (args.bug == past_global) args.y[gridDim.x + 8] = 0;
    if (args.bug == just_past_global) args.y[gridDim.x] = 0;
    if (args.bug == before_global) args.y[-3] = 0;
    if (args.bug == past_shared) sums[threads + 64] = 0;
    if (args.bug == just_past_shared) sums[threads] = 0;
  }
  if (args.bug == leaves_early && thread == 7) return;
  for (unsigned n = threads / 2; n; n /= 2) {
    if (args.bug == two_barriers && thread % 2)
      sync_threads();
    else if (args.bug != no_barrier || n != 32)
      sync_threads();
    if (thread < n) sums[thread] += sums[thread + n];
  }
  if (args.bug == spins_plainly && thread == 0)
    while (*const_cast<volatile float*>(args.y) != 1) {
    }
  if (thread == 0) args.y[blockIdx.x] = sums[0];
}

// ---- h [2, blocks, threads, 4] of 32 bits: at each step each block adds up what all of them had, and each thread adds
// its number: a grid-wide barrier by flags, memory shared through L2

struct GridArgs {
  uint4* h;
  uint32_t* flags;  // [blocks], zero
  int steps, bug;
};

FUSEDLSTM_KERNEL(64) grid_kernel(GridArgs args) {
  const unsigned thread = threadIdx.x, threads = blockDim.x, blocks = gridDim.x, block = blockIdx.x;
  const int bug = args.bug;
  for (int step = 0; step < args.steps; ++step) {
    const int from = step % 2, to = bug == one_buffer ? from : 1 - from;
    uint4 sum = {step + thread + block, 0, 0, 1};
    for (unsigned b = 0; b < blocks; ++b) {
      const uint4 v = load_16_from_l2(args.h + (from * blocks + b) * threads + thread);
      sum = {sum.x + v.x, sum.y + v.x, sum.z + v.y, sum.w + v.z};
    }
    store_16_to_l2(args.h + (to * blocks + block) * threads + thread, sum);
    const uint32_t done = static_cast<uint32_t>(step) + 1, wanted = bug == flag_one_less ? done - 1 : done;
    if (bug != release_before_barrier) sync_threads();
    if (thread == 0) {
      if (bug == plain_release)
        args.flags[block] = done;
      else
        store_release(args.flags + block, done);
    }
    if (bug != no_wait && thread < blocks)
      while (load_acquire(args.flags + thread) < (bug == waits_for_nobody ? wanted + 1000 : wanted)) {
      }
    sync_threads();
  }
}

// ---- y [3] = how often a counter was seen below what it was before, its last value, and seen values: one block
// counts, the other looks

struct CounterArgs {
  uint32_t *counter, *y;
  uint32_t end;
  int bug;
};

FUSEDLSTM_KERNEL(32) counter_kernel(CounterArgs args) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    for (uint32_t n = 1; n <= args.end; ++n) store_release(args.counter, n);
    return;
  }
  uint32_t seen = 0;
  while (seen < args.end) {
    const uint32_t now = load_acquire(args.counter);
    args.y[0] += now < seen;
    args.y[2] += now != seen;
    args.y[1] = seen = now;
  }
}

// ---- y [cluster, 32, 4]: the same exchange in the shared memory of a cluster, by store_async and mbarriers

struct ClusterArgs {
  uint4* y;
  int cluster, steps, bug;
};

FUSEDLSTM_KERNEL(32) cluster_kernel(ClusterArgs args) {
  constexpr uint32_t kBlockBytes = 32 * sizeof(uint4);
  const int rank = static_cast<int>(blockIdx.x) % args.cluster, bug = args.bug;
  const unsigned thread = threadIdx.x;
  uint64_t* bars = reinterpret_cast<uint64_t*>(dynamic_shared());
  uint4* h = reinterpret_cast<uint4*>(bars + 2);  // [2, cluster, 32]
  if (thread == 0) {
    for (int i = 0; i < (bug == no_init ? 1 : 2); ++i) mbarrier_init(bars + i, 1);
    if (bug != no_init_done) mbarrier_init_done();
  }
  if (bug != no_first_sync) cluster_sync();
  uint4 mine = {rank * 32 + thread, 0, 0, 1};
  for (int step = 0; step < args.steps; ++step) {
    const int buffer = bug == one_buffer ? 0 : step % 2;
    uint4* all = h + buffer * args.cluster * 32;
    uint32_t bytes = args.cluster * kBlockBytes;
    if (bug == few_bytes) bytes -= kBlockBytes;
    if (bug == many_bytes) bytes += sizeof(uint4);
    if (thread == 0) {
      if (bug == overwrites_mbarrier && step == 3) bars[buffer] = 0;
      mbarrier_arrive_expect(bars + buffer, bytes);
      if (bug == extra_arrival) mbarrier_arrive_expect(bars + buffer, 0);
    }
    for (int to = 0; to < args.cluster; ++to)
      store_async(remote(all + rank * 32 + thread,
                         bug == others_mbarrier || (bug == rank_too_high && to + 1 == args.cluster) ? to + 1 : to),
                  mine, remote(bars + buffer, to));
    const uint32_t phase = bug == one_buffer ? step : step / 2;
    if (bug != no_wait) mbarrier_wait(bars + buffer, (phase + (bug == parity)) % 2);
    uint4 sum = {step + thread + rank, 0, 0, 1};
    for (int from = 0; from < args.cluster; ++from) {
      const uint4 v = all[from * 32 + thread];
      sum = {sum.x + v.x, sum.y + v.x, sum.z + v.y, sum.w + v.z};
    }
    mine = sum;
  }
  args.y[rank * 32 + thread] = mine;
  const int next = (rank + 1) % args.cluster;
  if (bug == unawaited_store) store_async(remote(h + thread, next), mine, remote(bars, next));
  cluster_sync();
  if (bug == late_store) store_async(remote(h + thread, next), mine, remote(bars, next));
}

// ---- d [16, 8] = a [16, 32 bytes] b [8, 32 bytes]^T

enum Kind { bf16, fp16, tf32 };

struct ProductArgs {
  const uint32_t *a, *b;
  float* d;
  int kind, bug;
};

FUSEDLSTM_KERNEL(32) product_kernel(ProductArgs args) {
  const unsigned lane = threadIdx.x, q = lane / 4, t = lane % 4;
  const int bug = args.bug;
  uint32_t* tile = reinterpret_cast<uint32_t*>(dynamic_shared());  // [16, 8] words
  const auto operand = [&](uint32_t word) {
    return args.kind == tf32 && bug != not_rounded ? round_tf32(__builtin_bit_cast(float, word)) : word;
  };
  for (unsigned i = lane; i < 16 * 8; i += 32)
    if (bug != skips_copy || i != 77) tile[i] = operand(args.a[i]);
  sync_threads();
  uint32_t a[4];
  ldmatrix_x4(a, tile + lane % 16 * 8 + lane / 16 * 4 + (bug == misaligned && lane == 9));
  const uint32_t b0 = operand(args.b[q * 8 + t]), b1 = operand(args.b[q * 8 + t + 4]);
  float d[4] = {};
  if (bug != half_warp || lane < 16) {
    if (args.kind == bf16) mma_bf16(d, a, b0, b1);
    if (args.kind == fp16) mma_fp16(d, a, b0, b1);
    if (args.kind == tf32) mma_tf32(d, a, b0, b1);
  }
  if (bug == two_instructions) {
    if (lane < 16)
      mma_bf16(d, a, b0, b1);
    else
      mma_bf16(d, a, b0, b1);
  }
  for (unsigned i = 0; i < 4; ++i) args.d[(q + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// ---- y [pairs, 64] = x [pairs, 64] with the two warps of each pair changed over: named barriers

struct PairArgs {
  const float* x;
  float* y;
  int steps, bug;
};

FUSEDLSTM_KERNEL(256) pair_kernel(PairArgs args) {
  float* exchange = reinterpret_cast<float*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), pair = thread / 64;
  const int id = args.bug == same_barrier ? 1 : 1 + pair, count = args.bug == barrier_count ? 96 : 64;
  float value = args.x[thread];
  for (int step = 0; step < args.steps; ++step) {
    exchange[thread] = value;
    sync_some(id, count);
    value = exchange[thread ^ 32];
    if (args.bug != no_barrier) sync_some(id, count);
  }
  args.y[thread] = value;
}

}  // namespace

extern "C" {
const char* bugs() { return TEXT_OF(BUGS); }

int reduce(const float* x, float* y, int blocks, int threads, int shared_bytes, int bug) {
  return launch(reduce_kernel, {dim3(blocks), dim3(threads), shared_bytes}, nullptr, ReduceArgs{x, y, bug});
}

int grid(uint4* h, uint32_t* flags, int blocks, int threads, int steps, int cooperative, int bug) {
  const LaunchShape shape = {dim3(blocks), dim3(threads), 0, 1, cooperative != 0};
  return launch(grid_kernel, shape, nullptr, GridArgs{h, flags, steps, bug});
}

int counter(uint32_t* counter, uint32_t* y, int end, int bug) {
  return launch(counter_kernel, {dim3(2), dim3(32), 0, 1, true}, nullptr,
                CounterArgs{counter, y, static_cast<uint32_t>(end), bug});
}

int cluster(uint4* y, int blocks, int cluster, int steps, int bug) {
  const int shared_bytes = 16 + 2 * cluster * 32 * 16;
  return launch(cluster_kernel, {dim3(blocks), dim3(32), shared_bytes, cluster}, nullptr,
                ClusterArgs{y, cluster, steps, bug});
}

int product(const uint32_t* a, const uint32_t* b, float* d, int kind, int bug) {
  return launch(product_kernel, {dim3(1), dim3(32), 512}, nullptr, ProductArgs{a, b, d, kind, bug});
}

int pairs(const float* x, float* y, int pairs, int steps, int bug) {
  return launch(pair_kernel, {dim3(1), dim3(64 * pairs), 256 * pairs}, nullptr, PairArgs{x, y, steps, bug});
}
}
