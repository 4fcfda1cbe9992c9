#include "team.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace fusedlstm::cpu {
namespace {

// About 200 microseconds: longer than the usual spread between threads (a sleeping one takes tens of
// microseconds to wake), far shorter than a time slice.
constexpr int kSpins = 8000;

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct OpenMP {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  using Query = int (*)();
  Parallel parallel = nullptr;
  Query thread_num = nullptr, num_threads = nullptr;

  // libgomp's entry points, which LLVM's and Intel's runtimes export as well.
  OpenMP() {
    parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    thread_num = reinterpret_cast<Query>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    num_threads = reinterpret_cast<Query>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  }
  explicit operator bool() const { return parallel && thread_num && num_threads; }
};

const OpenMP& openmp() {
  static const OpenMP runtime;
  return runtime;
}

struct Call {
  Team team;
  void (*body)(void*, Team&, int);
  void* context;
  std::atomic<int> started{0};
};

void openmp_entry(void* data) {
  Call& call = *static_cast<Call*>(data);
  // The runtime may give fewer threads than were asked for; all of them store the same value.
  __atomic_store_n(&call.team.size, openmp().num_threads(), __ATOMIC_RELAXED);
  call.body(call.context, call.team, openmp().thread_num());
}

}  // namespace

void run_team(int threads, void (*body)(void*, Team&, int), void* context) {
  threads = std::clamp(threads, 1, kMaxThreads);
  Call call;
  call.team.size = threads;
  call.team.arrived = call.team.generation = 0;
  for (int rank = 0; rank < threads; ++rank) call.team.cursors[rank].next = 0;
  call.body = body;
  call.context = context;
  if (threads == 1) {
    body(context, call.team, 0);
  } else if (openmp()) {
    openmp().parallel(openmp_entry, &call, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank)
      others.emplace_back([&call, rank] { call.body(call.context, call.team, rank); });
    body(context, call.team, 0);
    for (std::thread& thread : others) thread.join();
  }
}

void barrier(Team& team) {
  std::atomic_ref<uint32_t> arrived(team.arrived), generation(team.generation);
  const uint32_t now = generation.load(std::memory_order_acquire);
  if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(team.size)) {
    arrived.store(0, std::memory_order_relaxed);
    for (int rank = 0; rank < team.size; ++rank) team.cursors[rank].next = 0;
    generation.store(now + 1, std::memory_order_release);
    generation.notify_all();
    return;
  }
  for (int spin = 0; spin < kSpins; ++spin) {
    if (generation.load(std::memory_order_acquire) != now) return;
    pause_cpu();
  }
  while (generation.load(std::memory_order_acquire) == now) generation.wait(now, std::memory_order_acquire);
}

}  // namespace fusedlstm::cpu
