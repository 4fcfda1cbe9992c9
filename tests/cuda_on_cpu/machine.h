// The machine that kernels run on: threads, warps, blocks and why each of them waits; faults.
#pragma once
#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <unordered_map>
#include <vector>

#include "fibers.h"
#include "memory.h"

namespace fusedlstm::gpu::shim {

using Where = std::source_location;

enum class Wait { none, poll, barrier, collective, cluster, mbarrier, ended };

struct Block;
struct Warp;

struct Thread {
  void* stack;
  Warp* warp;
  Block* block;
  uint3 index;
  int number;  // in its block
  Wait wait = Wait::none;
  int barrier = 0;                     // the one waited for
  const uint64_t* mbarrier = nullptr;  // the one waited for
  const char* primitive = "start";     // called last, and where
  Where where = {};
};

// What a lane brings to an instruction of its whole warp.
struct Operands {
  float* d = nullptr;
  const uint32_t* a = nullptr;
  uint32_t b[2] = {};
  const void* row = nullptr;
  uint32_t* r = nullptr;
};

struct Warp {
  Block* block;
  Thread* threads;
  int size;
  int number;        // in its block
  int runnable = 0;  // threads that wait for nothing, or poll
  int arrived = 0;   // at `operation`
  void (*operation)(Warp&) = nullptr;
  Where where = {};
  const Operands* lanes[32];  // on the stacks of lanes, which wait
  std::vector<uint64_t> met;  // per warp of the block: stores up to here are ordered before what this warp does next
};

struct Barrier {
  int arrived = 0, expected = 0;
};

struct MBarrier {
  uint64_t* at;
  Block* block;
  const Thread* by;
  int arrivals, pending;
  int64_t bytes = 0;  // still to come; below zero while they are ahead of their announcement
  uint32_t phase = 0;
  bool announced = false;  // by mbarrier_init_done
};

// A store that not every block can see yet.
struct HiddenStore {
  uintptr_t granule;
  uint64_t order;
  const Thread* by;
};

struct Block {
  uint3 index;
  int rank;  // in its cluster
  std::vector<Block*> cluster;
  Thread* threads;
  Warp* warps;
  int thread_count, warp_count;
  int ended = 0;
  std::unique_ptr<GuardedMemory> shared;
  Barrier barriers[16];
  std::vector<HiddenStore> hidden;
};

// 16 bytes of global memory before a store that some blocks cannot see yet.
struct Version {
  uint64_t order;
  const Block* by;
  int offset, size;
  unsigned char old[16];
};

struct AsyncStore {
  Block* to;
  unsigned char* address;
  uint4 value;
  uint64_t* mbarrier;
  const Thread* by;
  Where where;
};

// Blocks that are on the device together, and all that is under way between them.
struct Machine {
  std::function<void()> kernel;
  dim3 grid, block;
  uint64_t seed = 0;
  std::mt19937_64 generator;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::vector<int> cluster_arrived;  // threads, per cluster
  std::vector<MBarrier> mbarriers;
  std::vector<AsyncStore> async;                                 // not delivered
  std::unordered_map<uintptr_t, std::vector<Version>> versions;  // by address / 16
  uint64_t store_order = 0;
  size_t hidden_stores = 0;
  uint64_t calls = 0;     // of primitives that only now and then let others run
  uint64_t switches = 0;  // for the watchdog
  size_t ready = 0, polling = 0, ended = 0;

  bool adversarial() const { return seed != 0; }
  uint64_t random(uint64_t below) { return generator() % below; }
};

inline Machine* machine = nullptr;  // of the launch under way
inline Thread* current = nullptr;   // null: the scheduler runs
inline void* scheduler_stack = nullptr;
inline Stacks stacks;
inline unsigned launch_seed = 0;

inline char error[4096] = "";
inline bool failed = false;

struct Stopped {};  // thrown on the scheduler's stack only: nothing unwinds a fiber's

inline void switch_to_scheduler() {
  ++machine->switches;
  shim_switch(&current->stack, scheduler_stack);
}

// Ends the launch. Fibers are abandoned where they are.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fault(const char* format, ...) {
  int n = 0;
  if (const Thread* t = current) {
    const uint3 b = t->block->index, i = t->index;
    n = snprintf(error, sizeof error, "block (%u,%u,%u) thread (%u,%u,%u), %s", b.x, b.y, b.z, i.x, i.y, i.z,
                 t->primitive);
    if (t->where.line()) n += snprintf(error + n, sizeof error - n, " at %s:%u", t->where.file_name(), t->where.line());
    n += snprintf(error + n, sizeof error - n, ": ");
  }
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error + n, sizeof error - n, format, arguments);
  va_end(arguments);
  failed = true;
  if (current) switch_to_scheduler();
  throw Stopped{};
}

inline void set_wait(Thread& t, Wait wait) {
  const auto count = [&](Wait w, int by) {
    if (w == Wait::none) machine->ready += by;
    if (w == Wait::poll) machine->polling += by;
    if (w == Wait::ended) machine->ended += by;
    if (w == Wait::none || w == Wait::poll) t.warp->runnable += by;
  };
  count(t.wait, -1);
  t.wait = wait;
  count(wait, 1);
}

// The thread waits until another makes it ready; one that polls, until its next turn.
inline void wait(Wait why) {
  set_wait(*current, why);
  switch_to_scheduler();
}

// Each primitive begins with this, so that a fault can tell where.
inline Thread& enter(const char* primitive, const Where& where) {
  current->primitive = primitive;
  current->where = where;
  return *current;
}

// Lets others run in between, now and then. A load counts as polling: it may be the body of a spin wait.
inline void interleave(Wait why) {
  const bool now = machine->adversarial() ? machine->random(16) == 0 : ++machine->calls % 256 == 0;
  if (now) wait(why);
}

inline void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fault("%p is not aligned to %zu bytes", p, bytes);
}

inline void check_shared(const void* p, size_t bytes) {
  const GuardedMemory& shared = *current->block->shared;
  if (!shared.has(p, bytes))
    fault("%zu bytes at byte %td, outside the block's %zu bytes of shared memory", bytes, shared.offset(p),
          shared.bytes());
  check_aligned(p, bytes);
}

}  // namespace fusedlstm::gpu::shim
