// Stands in for primitives.cuh (FUSEDLSTM_HOST_SHIM): CUDA kernels run on one CPU thread under g++, each CUDA thread a
// fiber, in an order that a seed chooses. Faults are errors of the launch; shim_error() tells what went wrong and
// where.
//
// Caught: indices out of range (shared memory; buffers of shim_allocate), shared memory read before it is written
// (NaN), missing or divergent barriers, warp instructions without all lanes, deadlocks, wrong use of mbarriers, stores
// to blocks that have ended, stores read by other blocks without release and acquire, and reliance on order.
//
// Not modelled: bank conflicts, registers, time. A thread is left only at a primitive, so plain accesses between two of
// them are never torn apart, and plain loads and stores of global memory are ordered as on x86; of stores, only those
// by store_16_to_l2 and store_release are seen late. Loads are never early: an acquire after the load it should precede
// is found only by the schedule. cluster_sync shows all stores of the cluster to everybody. The tensor cores' own
// rounding and order of sums (float32, in the order of k here), exp_fast's and divide_fast's errors, and stale L1
// lines.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "block.h"
#include "cluster.h"
#include "l2.h"
#include "launch.h"
#include "machine.h"
#include "warp.h"

#define FUSEDLSTM_DEVICE inline
#define FUSEDLSTM_KERNEL(max_threads) __attribute__((patchable_function_entry(((max_threads) + 31) / 32))) void

#define threadIdx (::fusedlstm::gpu::shim::current->index)
#define blockIdx (::fusedlstm::gpu::shim::current->block->index)
#define blockDim (::fusedlstm::gpu::shim::machine->block)
#define gridDim (::fusedlstm::gpu::shim::machine->grid)

namespace fusedlstm::gpu {

// ---- the block

inline unsigned char* dynamic_shared() { return shim::current->block->shared->data(); }

inline void sync_threads(shim::Where where = shim::Where::current()) {
  shim::barrier_wait(0, shim::enter("sync_threads", where).block->thread_count);
}

inline void sync_some(int id, int threads, shim::Where where = shim::Where::current()) {
  const shim::Block& block = *shim::enter("sync_some", where).block;
  if (id < 1 || id > 15) shim::fault("barrier %d, expected 1 to 15", id);
  if (threads < 32 || threads % 32 || threads > block.thread_count)
    shim::fault("%d threads, expected whole warps and at most the block's %d threads", threads, block.thread_count);
  shim::barrier_wait(id, threads);
}

inline float exp_fast(float x) { return std::exp(x); }
inline float divide_fast(float a, float b) { return a / b; }

// ---- matrix instructions

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     shim::Where where = shim::Where::current()) {
  shim::enter("mma_bf16", where);
  shim::collective(shim::multiply<16, shim::from_bf16>, {.d = d, .a = a, .b = {b0, b1}});
}

inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     shim::Where where = shim::Where::current()) {
  shim::enter("mma_fp16", where);
  shim::collective(shim::multiply<16, shim::from_fp16>, {.d = d, .a = a, .b = {b0, b1}});
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     shim::Where where = shim::Where::current()) {
  shim::enter("mma_tf32", where);
  shim::check_tf32(a, b0, b1);
  shim::collective(shim::multiply<8, shim::from_tf32>, {.d = d, .a = a, .b = {b0, b1}});
}

inline uint32_t round_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7FFFE000;
  return std::isinf(x) ? bits : (bits + 0x1000) & ~0x1FFFu;
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, shim::Where where = shim::Where::current()) {
  shim::enter("ldmatrix_x4", where);
  shim::check_shared(row, 16);
  shim::collective(shim::load_matrices, {.row = row, .r = r});
}

// ---- global memory shared between blocks

inline uint4 load_16_from_l2(const void* p, shim::Where where = shim::Where::current()) {
  shim::enter("load_16_from_l2", where);
  shim::interleave(shim::Wait::poll);
  uint4 v;
  shim::load(&v, p, sizeof v);
  return v;
}

inline void prefetch_to_l2(const void*) {}

inline void store_16_to_l2(void* p, uint4 v, shim::Where where = shim::Where::current()) {
  shim::enter("store_16_to_l2", where);
  shim::store(p, &v, sizeof v);
}

inline uint32_t load_acquire(const uint32_t* p, shim::Where where = shim::Where::current()) {
  shim::enter("load_acquire", where);
  shim::wait(shim::Wait::poll);
  uint32_t v;
  shim::load(&v, p, sizeof v);
  return v;
}

inline void store_release(uint32_t* p, uint32_t v, shim::Where where = shim::Where::current()) {
  shim::enter("store_release", where);
  shim::show_released();
  shim::store(p, &v, sizeof v);
}

// ---- the cluster

using ClusterAddress = uint32_t;
constexpr bool HAS_CLUSTERS = true;

inline void cluster_sync(shim::Where where = shim::Where::current()) {
  shim::enter("cluster_sync", where);
  shim::cluster_wait();
}

inline ClusterAddress remote(const void* local, int rank, shim::Where where = shim::Where::current()) {
  const shim::Block& block = *shim::enter("remote", where).block;
  shim::check_shared(local, 1);
  if (rank < 0 || rank >= static_cast<int>(block.cluster.size()))
    shim::fault("rank %d, expected 0 to %zu", rank, block.cluster.size() - 1);
  return static_cast<uint32_t>(rank + 1) << 24 | static_cast<uint32_t>(block.shared->offset(local));
}

inline void mbarrier_init(uint64_t* bar, int arrivals, shim::Where where = shim::Where::current()) {
  shim::Thread& t = shim::enter("mbarrier_init", where);
  shim::check_shared(bar, sizeof *bar);
  if (arrivals < 1 || arrivals >= 1 << 20) shim::fault("%d arrivals, expected 1 to 2^20 - 1", arrivals);
  for (const shim::MBarrier& b : shim::machine->mbarriers)
    if (b.at == bar) shim::fault("the mbarrier is initialised already");
  *bar = uint64_t{shim::kMBarrierMark} << 32 | shim::machine->mbarriers.size();
  shim::machine->mbarriers.push_back(
      {.at = bar, .block = t.block, .by = &t, .arrivals = arrivals, .pending = arrivals});
}

inline void mbarrier_init_done(shim::Where where = shim::Where::current()) {
  const shim::Thread& t = shim::enter("mbarrier_init_done", where);
  for (shim::MBarrier& b : shim::machine->mbarriers) b.announced |= b.by == &t;
}

inline void mbarrier_arrive_expect(uint64_t* bar, uint32_t bytes, shim::Where where = shim::Where::current()) {
  const shim::Thread& t = shim::enter("mbarrier_arrive_expect", where);
  shim::check_shared(bar, sizeof *bar);
  shim::MBarrier& barrier = shim::mbarrier_at(bar);
  if (!barrier.pending) shim::fault("more arrivals than the %d of the phase", barrier.arrivals);
  shim::show_all(*t.block, [&](const shim::HiddenStore& s) { return s.by == &t; });
  shim::expect_bytes(barrier, bytes);
  --barrier.pending;
  shim::end_phase_if_complete(barrier);
  shim::interleave(shim::Wait::none);
}

inline void mbarrier_wait(uint64_t* bar, uint32_t parity, shim::Where where = shim::Where::current()) {
  shim::Thread& t = shim::enter("mbarrier_wait", where);
  shim::check_shared(bar, sizeof *bar);
  if (parity > 1) shim::fault("parity %u, expected 0 or 1", parity);
  shim::interleave(shim::Wait::none);
  t.mbarrier = bar;
  while ((shim::mbarrier_at(bar).phase & 1) == parity) shim::wait(shim::Wait::mbarrier);
}

inline void store_async(ClusterAddress to, uint4 v, ClusterAddress bar, shim::Where where = shim::Where::current()) {
  const shim::Thread& t = shim::enter("store_async", where);
  shim::Block *block, *bar_block;
  unsigned char* address = shim::cluster_pointer(to, sizeof v, block);
  auto* mbarrier = reinterpret_cast<uint64_t*>(shim::cluster_pointer(bar, sizeof(uint64_t), bar_block));
  if (block != bar_block)
    shim::fault("the store goes to block %u, its mbarrier is in block %u", block->index.x, bar_block->index.x);
  if (block->ended == block->thread_count) shim::fault("store into a block that has ended: %u", block->index.x);
  shim::machine->async.push_back({block, address, v, mbarrier, &t, where});
  shim::interleave(shim::Wait::none);
}

// ---- launches

struct LaunchShape {
  dim3 grid, block;
  int shared_bytes;
  int cluster = 1;           // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are on the device at once, or the launch is refused
};

template <class Args>
cudaError_t launch(void (*kernel)(Args), const LaunchShape& shape, cudaStream_t, const Args& args) {
  return shim::run(
      reinterpret_cast<const void*>(kernel), [&] { kernel(args); }, shape.grid, shape.block, shape.shared_bytes,
      shape.cluster, shape.cooperative);
}

inline const char* error_words(cudaError_t) { return shim::error; }

// There is no device that could be asked.
inline cudaError_t query(int, int*, int*, int*, int*) { return cudaErrorNotSupported; }

template <class Args>
cudaError_t query(void (*)(Args), int, int, int, int*, int*, int*, int*) {
  return cudaErrorNotSupported;
}

}  // namespace fusedlstm::gpu

// ---- for the tests, through ctypes

#define FUSEDLSTM_SHIM_API extern "C" __attribute__((used)) inline

// Of launches from now on.
FUSEDLSTM_SHIM_API void shim_seed(unsigned seed) { fusedlstm::gpu::shim::launch_seed = seed; }

// What went wrong in the last launch; empty if nothing.
FUSEDLSTM_SHIM_API const char* shim_error() { return fusedlstm::gpu::shim::error; }

// Memory filled with 0xFF, a multiple of 16 bytes from a page that nobody may touch; null where there is none.
FUSEDLSTM_SHIM_API void* shim_allocate(size_t bytes) {
  try {
    return fusedlstm::gpu::shim::global_memory.emplace_back(bytes, 16).data();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

FUSEDLSTM_SHIM_API void shim_free(void* data) {
  fusedlstm::gpu::shim::global_memory.remove_if([&](const auto& m) { return m.data() == data; });
}
