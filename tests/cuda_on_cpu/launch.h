// A launch: checks its shape, makes the machine, runs it, and tells of faults.
#pragma once
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

#include "schedule.h"

namespace fusedlstm::gpu::shim {

constexpr int kMaxSharedBytes = 227 * 1024;
constexpr int kMaxCluster = 16;
constexpr size_t kMaxResidentThreads = 8192;        // of a launch that does not ask for all of its blocks at once
constexpr long kWatchdogNanoseconds = 300'000'000;  // of CPU time

// FUSEDLSTM_KERNEL has the compiler put one nop for each warp that the kernel may have at its entry.
inline unsigned max_threads_of(const void* kernel) {
  const unsigned char* code = static_cast<const unsigned char*>(kernel);
  static constexpr unsigned char kEndbr64[] = {0xF3, 0x0F, 0x1E, 0xFA};
  if (!memcmp(code, kEndbr64, sizeof kEndbr64)) code += sizeof kEndbr64;
  unsigned warps = 0;
  while (code[warps] == 0x90) ++warps;
  return 32 * warps;
}

// What the operating system says of a thread that went wrong.
inline void on_signal(int number, siginfo_t* info, void*) {
  static uint64_t switches_seen = 0;
  if (number == SIGVTALRM) {
    const bool stands = current && switches_seen == machine->switches;
    if (current) switches_seen = machine->switches;
    if (!stands) return;
    fault("spins: no primitive was called for long, and load_acquire is the one to wait with");
  }
  if (!current) {  // the shim's own fault, or the launching program's: it comes again and kills
    signal(number, SIG_DFL);
    return;
  }
  const void* p = info->si_addr;
  for (const Block& b : machine->blocks)
    if (b.shared->holds(p))
      fault("byte %td of block (%u,%u,%u)'s %zu bytes of shared memory", b.shared->offset(p), b.index.x, b.index.y,
            b.index.z, b.shared->bytes());
  for (const GuardedMemory& m : global_memory)
    if (m.holds(p)) fault("byte %td of a buffer of %zu bytes", m.offset(p), m.bytes());
  fault("an access to %p, which is nobody's (or of 16 bytes, and not aligned)", p);
}

// While it lives, faults of the running thread become faults of the launch.
class Signals {
 public:
  Signals() {
    stack_.ss_sp = alternate_;
    stack_.ss_size = sizeof alternate_;
    sigaltstack(&stack_, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler may leave by a switch, without a return
    for (int i = 0; i < 3; ++i) sigaction(kNumbers[i], &action, &old_[i]);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
    watched_ = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &watchdog_) == 0;
    const itimerspec every = {{0, kWatchdogNanoseconds}, {0, kWatchdogNanoseconds}};
    if (watched_) timer_settime(watchdog_, 0, &every, nullptr);
  }
  ~Signals() {
    if (watched_) timer_delete(watchdog_);
    for (int i = 0; i < 3; ++i) sigaction(kNumbers[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int kNumbers[3] = {SIGSEGV, SIGBUS, SIGVTALRM};
  alignas(16) char alternate_[65536];
  stack_t stack_ = {}, old_stack_ = {};
  struct sigaction old_[3];
  timer_t watchdog_ = {};
  bool watched_ = false;
};

// The bottom of every fiber.
inline void thread_main() {
  machine->kernel();
  Block& block = *current->block;
  for (int id = 0; id < 16; ++id)
    if (block.barriers[id].arrived && block.barriers[id].expected == block.thread_count)
      fault("divergent barrier %d: the thread ends while %d others wait", id, block.barriers[id].arrived);
  if (machine->cluster_arrived[(&block - machine->blocks.data()) / block.cluster.size()])
    fault("divergent barrier: the thread ends while others wait in cluster_sync");
  if (++block.ended == block.thread_count)
    for (const AsyncStore& s : machine->async)
      if (s.to == &block)
        fault("store into a block that has ended: store_async from block %u at %s:%u is on its way to block %u",
              s.by->block->index.x, s.where.file_name(), s.where.line(), block.index.x);
  set_wait(*current, Wait::ended);
  switch_to_scheduler();
}

// Blocks [begin, end) of the grid, not started. False where memory is short.
inline bool make_machine(Machine& m, size_t begin, size_t end, int shared_bytes, int cluster) {
  const int threads = static_cast<int>(m.block.x * m.block.y * m.block.z), warps = (threads + 31) / 32;
  const size_t blocks = end - begin;
  if (!stacks.reserve(blocks * threads)) return false;
  m.blocks.resize(blocks);
  m.warps.resize(blocks * warps);
  m.threads.resize(blocks * threads);
  m.cluster_arrived.resize(blocks / cluster);
  m.ready = blocks * threads;
  for (size_t i = 0; i < blocks; ++i) {
    Block& b = m.blocks[i];
    const unsigned number = static_cast<unsigned>(begin + i);
    b.index = {number % m.grid.x, number / m.grid.x % m.grid.y, number / m.grid.x / m.grid.y};
    b.rank = static_cast<int>(i % cluster);
    for (int rank = 0; rank < cluster; ++rank) b.cluster.push_back(&m.blocks[i - b.rank + rank]);
    b.threads = &m.threads[i * threads];
    b.warps = &m.warps[i * warps];
    b.thread_count = threads;
    b.warp_count = warps;
    b.shared = std::make_unique<GuardedMemory>(shared_bytes, 128);
    for (int w = 0; w < warps; ++w) {
      Warp& warp = b.warps[w];
      warp.block = &b;
      warp.threads = b.threads + w * 32;
      warp.size = std::min(32, threads - w * 32);
      warp.number = w;
      warp.runnable = warp.size;
      warp.met.assign(warps, 0);
    }
    for (int n = 0; n < threads; ++n) {
      Thread& t = b.threads[n];
      const unsigned u = static_cast<unsigned>(n);
      t.index = {u % m.block.x, u / m.block.x % m.block.y, u / m.block.x / m.block.y};
      t.number = n;
      t.block = &b;
      t.warp = &b.warps[n / 32];
      t.stack = stacks.start(i * threads + n, thread_main);
    }
  }
  return true;
}

// Writes that missed a buffer by little.
inline void check_redzones() {
  for (Block& b : machine->blocks)
    if (const auto at = b.shared->damage())
      fault("block (%u,%u,%u) wrote byte %td of its %zu bytes of shared memory", b.index.x, b.index.y, b.index.z, *at,
            b.shared->bytes());
  for (GuardedMemory& m : global_memory)
    if (const auto at = m.damage()) fault("the kernel wrote byte %td of a buffer of %zu bytes", *at, m.bytes());
}

__attribute__((format(printf, 2, 3))) inline cudaError_t refuse(cudaError_t code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, sizeof error, format, arguments);
  va_end(arguments);
  return code;
}

inline cudaError_t run(const void* kernel, std::function<void()> body, dim3 grid, dim3 block, int shared_bytes,
                       int cluster, bool cooperative) {
  error[0] = 0;
  failed = false;
  const size_t threads = size_t{block.x} * block.y * block.z, blocks = size_t{grid.x} * grid.y * grid.z;
  const unsigned max_threads = max_threads_of(kernel);
  if (!max_threads) return refuse(cudaErrorInvalidDeviceFunction, "the function is no FUSEDLSTM_KERNEL");
  if (!threads || threads > 1024 || threads > max_threads)
    return refuse(cudaErrorInvalidConfiguration, "block: %zu threads, the kernel allows 1 to %u, at most 1024", threads,
                  max_threads);
  if (shared_bytes < 0 || shared_bytes > kMaxSharedBytes)
    return refuse(cudaErrorInvalidValue, "shared_bytes: %d, expected 0 to %d", shared_bytes, kMaxSharedBytes);
  if (cluster < 1 || cluster > kMaxCluster)
    return refuse(cudaErrorInvalidClusterSize, "cluster: %d blocks, expected 1 to %d", cluster, kMaxCluster);
  if (!blocks || grid.x % cluster)
    return refuse(cudaErrorInvalidConfiguration, "grid: %u x %u x %u blocks, expected a multiple of cluster (%d) in x",
                  grid.x, grid.y, grid.z, cluster);
  // Only a cooperative launch promises that all blocks are there at once: odd seeds have as few as they may.
  size_t together = blocks;
  if (!cooperative)
    together = launch_seed % 2 ? cluster : std::max<size_t>(1, kMaxResidentThreads / threads / cluster) * cluster;
  const auto signals = std::make_unique<Signals>();
  cudaError_t result = cudaSuccess;
  for (size_t begin = 0; begin < blocks && result == cudaSuccess; begin += together) {
    Machine m;
    m.kernel = body;
    m.grid = grid;
    m.block = block;
    m.seed = launch_seed;
    m.generator.seed(launch_seed);
    machine = &m;
    try {
      if (make_machine(m, begin, std::min(begin + together, blocks), shared_bytes, cluster)) {
        Schedule().run();
        check_redzones();
      } else {
        result = refuse(cudaErrorMemoryAllocation, "no memory for the stacks of %zu threads", threads * together);
      }
    } catch (const Stopped&) {
      result = cudaErrorLaunchFailure;
    }
    current = nullptr;
    machine = nullptr;
  }
  return result;
}

}  // namespace fusedlstm::gpu::shim
