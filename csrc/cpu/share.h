// Sharing work inside a team: every rank takes its own contiguous range first (its slice of the weights
// stays in its core's cache), then helps the others, so that a preempted thread delays nobody for long.
#pragma once
#include "team.h"

namespace fusedlstm::cpu {
namespace {

struct Worker {
  Team& team;
  int rank;

  // Runs task(0..count-1), each once, somewhere in the team; all are done when it returns. Steps that go
  // over the same weights alternate in direction: what the last step used last is still in the L2 cache.
  template <class Task>
  void for_each(int64_t count, const Task& task, bool downwards = false) const {
    const int64_t size = team.size;
    if (size == 1) {
      for (int64_t i = 0; i < count; ++i) task(downwards ? count - 1 - i : i);
      return;
    }
    for (int64_t turn = 0; turn < size; ++turn) {
      const int64_t owner = (rank + turn) % size;
      const int64_t begin = count * owner / size, end = count * (owner + 1) / size;
      int64_t* next = &team.cursors[owner].next;
      while (begin + __atomic_load_n(next, __ATOMIC_RELAXED) < end) {
        const int64_t i = begin + __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i < end) task(downwards ? end - 1 - (i - begin) : i);
      }
    }
    barrier(team);
  }
};

// Runs body(worker) on a team of threads.
template <class Body>
void parallel(int threads, Body& body) {
  run_team(
      threads, [](void* context, Team& team, int rank) { (*static_cast<Body*>(context))(Worker{team, rank}); }, &body);
}

}  // namespace
}  // namespace fusedlstm::cpu
