// Barriers of a block.
#pragma once
#include <algorithm>

#include "machine.h"

namespace fusedlstm::gpu::shim {

// What warps [of the block] stored before they met is ordered before what each of them does next.
inline void meet(Block& block, const std::vector<Warp*>& warps) {
  std::vector<uint64_t> known(block.warp_count, 0);
  for (const Warp* w : warps)
    for (int i = 0; i < block.warp_count; ++i) known[i] = std::max(known[i], w->met[i]);
  for (const Warp* w : warps) known[w->number] = machine->store_order;
  for (Warp* w : warps) w->met = known;
}

inline void release(Block& block, int id) {
  std::vector<Warp*> warps;
  for (int w = 0; w < block.warp_count; ++w) {
    Warp& warp = block.warps[w];
    int here = 0;
    const Thread* first = nullptr;
    for (int i = 0; i < warp.size; ++i) {
      const Thread& t = warp.threads[i];
      if (t.wait != Wait::barrier || t.barrier != id) continue;
      if (first && t.where.line() != first->where.line())
        fault("divergent barrier %d: a warp is at line %u and at line %u", id, first->where.line(), t.where.line());
      first = &t;
      ++here;
    }
    if (here && here != warp.size)
      fault("divergent barrier %d: %d of the %d threads of warp %d are missing", id, warp.size - here, warp.size, w);
    if (here) warps.push_back(&warp);
  }
  meet(block, warps);
  block.barriers[id] = {};
  for (Warp* warp : warps)
    for (int i = 0; i < warp->size; ++i) set_wait(warp->threads[i], Wait::none);
}

inline void barrier_wait(int id, int threads) {
  Block& block = *current->block;
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived && barrier.expected != threads)
    fault("divergent barrier %d: %d threads expected here, %d elsewhere", id, threads, barrier.expected);
  if (threads == block.thread_count && block.ended)
    fault("divergent barrier %d: %d threads of the block have ended", id, block.ended);
  barrier.expected = threads;
  set_wait(*current, Wait::barrier);
  current->barrier = id;
  if (++barrier.arrived == threads)
    release(block, id);
  else
    switch_to_scheduler();
}

}  // namespace fusedlstm::gpu::shim
