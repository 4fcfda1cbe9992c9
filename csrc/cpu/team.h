// A team of threads that runs one body together, shares out tasks and meets at barriers.
//
// The threads are torch's own OpenMP threads when its runtime is in the process (no second pool that
// would fight for the cores), std::threads otherwise. A waiting thread spins for some tens of
// microseconds, then sleeps in the kernel: beside a busy neighbour the core goes to whoever has work.
#pragma once
#include <cstdint>

namespace fusedlstm::cpu {

constexpr int kMaxThreads = 256;

struct alignas(64) Cursor {
  int64_t next;  // tasks of this rank's range that are taken, in the running phase
};

struct Team {
  int size;
  alignas(64) uint32_t arrived;
  alignas(64) uint32_t generation;
  Cursor cursors[kMaxThreads];
};

// Runs body(context, team, rank) on up to `threads` threads; returns when all are done.
void run_team(int threads, void (*body)(void*, Team&, int), void* context);

// Waits until every member has come; the last one opens the next phase.
void barrier(Team& team);

}  // namespace fusedlstm::cpu
