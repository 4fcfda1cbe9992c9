// Clusters: their barrier, mbarriers, and stores into the shared memory of other blocks.
#pragma once
#include "l2.h"
#include "machine.h"

namespace fusedlstm::gpu::shim {

constexpr uint32_t kMBarrierMark = 0xFA57BA22;  // in the upper half of the 8 bytes; the lower half is its number

inline void cluster_wait() {
  Thread& t = *current;
  Block& block = *t.block;
  int expected = 0;
  for (const Block* b : block.cluster) {
    expected += b->thread_count;
    if (b->ended) fault("divergent barrier: %d threads of block %u have ended", b->ended, b->index.x);
  }
  int& arrived = machine->cluster_arrived[(&block - machine->blocks.data()) / block.cluster.size()];
  if (++arrived < expected) return wait(Wait::cluster);
  arrived = 0;
  for (Block* b : block.cluster) {
    show_all(*b, [](const HiddenStore&) { return true; });
    for (int i = 0; i < b->thread_count; ++i)
      if (&b->threads[i] != &t) set_wait(b->threads[i], Wait::none);
  }
}

inline MBarrier& mbarrier_at(uint64_t* at) {
  const uint32_t number = static_cast<uint32_t>(*at);
  if (*at >> 32 != kMBarrierMark || number >= machine->mbarriers.size() || machine->mbarriers[number].at != at)
    fault("mbarrier at %p is not initialised, or was overwritten", static_cast<void*>(at));
  return machine->mbarriers[number];
}

inline void end_phase_if_complete(MBarrier& bar) {
  if (bar.pending || bar.bytes) return;
  ++bar.phase;
  bar.pending = bar.arrivals;
  for (int i = 0; i < bar.block->thread_count; ++i) {
    Thread& t = bar.block->threads[i];
    if (t.wait == Wait::mbarrier && t.mbarrier == bar.at) set_wait(t, Wait::none);
  }
}

inline void expect_bytes(MBarrier& bar, int64_t bytes) {
  constexpr int64_t kMaxBytes = (1 << 20) - 1;
  bar.bytes += bytes;
  if (bar.bytes > kMaxBytes || bar.bytes < -kMaxBytes)
    fault("mbarrier: %lld bytes are pending, at most %lld can be", static_cast<long long>(bar.bytes),
          static_cast<long long>(kMaxBytes));
}

inline void deliver(size_t chosen) {
  const AsyncStore s = machine->async[chosen];
  machine->async[chosen] = machine->async.back();
  machine->async.pop_back();
  memcpy(s.address, &s.value, sizeof s.value);
  const uint64_t word = *s.mbarrier;
  const uint32_t number = static_cast<uint32_t>(word);
  const bool known = word >> 32 == kMBarrierMark && number < machine->mbarriers.size() &&
                     machine->mbarriers[number].at == s.mbarrier && machine->mbarriers[number].announced;
  if (!known)
    fault(
        "store_async from block %u at %s:%u: the mbarrier in block %u is not initialised (or mbarrier_init_done and "
        "cluster_sync are missing)",
        s.by->block->index.x, s.where.file_name(), s.where.line(), s.to->index.x);
  MBarrier& bar = machine->mbarriers[number];
  expect_bytes(bar, -static_cast<int64_t>(sizeof s.value));
  end_phase_if_complete(bar);
}

// An address is the rank + 1 in the upper byte, then the offset in that block's dynamic shared memory.
inline unsigned char* cluster_pointer(uint32_t address, size_t bytes, Block*& block) {
  const uint32_t rank = (address >> 24) - 1, offset = address & 0xFFFFFF;
  if (rank >= current->block->cluster.size()) fault("%08x is no address of the cluster", address);
  block = current->block->cluster[rank];
  if (offset + bytes > block->shared->bytes())
    fault("byte %u of block %u, which has %zu bytes of shared memory", offset, block->index.x, block->shared->bytes());
  if (offset % bytes) fault("byte %u of block %u is not aligned to %zu bytes", offset, block->index.x, bytes);
  return block->shared->data() + offset;
}

}  // namespace fusedlstm::gpu::shim
