// What the micro-benchmarks share: checked calls, launches, two clocks, and one JSON line for each figure.
//
// A kernel times a loop of many rounds on one of its threads by both clocks: cycles of the multiprocessor, and
// nanoseconds, which tick coarsely but over a whole loop tell the clock rate. It counts what it found wrong.
// A wait that takes too long traps, so nothing can hang; the launch then fails, and with it the program.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

constexpr int THREADS = 256;                // of a block, as the kernels of the recurrence have
constexpr int ALONE = 120 << 10;            // bytes of shared memory that keep a second block off a multiprocessor
constexpr unsigned POLLS = 1u << 22;        // of a wait, before it traps: of memory, about a second
constexpr long long WAIT_CYCLES = 1 << 30;  // the same, where a poll may itself wait

struct Result {
  long long cycles, ns;
  unsigned wrong;
};

using Fields = std::vector<std::pair<std::string, double>>;

#define CHECK(call) check((call), #call)
inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::string why = std::string(call) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorLaunchFailure || error == cudaErrorIllegalInstruction) why += " (a wait that ran out traps)";
  throw std::runtime_error(why);
}

// ---- on the device

__device__ inline long long nanoseconds() {
  long long t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
  return t;
}

struct Watch {
  long long cycles, ns;
  __device__ void start() {
    ns = nanoseconds();
    cycles = clock64();
  }
  __device__ void stop(Result* result) const {
    long long now = clock64();
    result->ns = nanoseconds() - ns;
    result->cycles = now - cycles;
  }
};

__device__ inline unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ inline void store_release(unsigned* p, unsigned v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

__device__ inline void add_release(unsigned* p, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Waits until *p has come as far as the target.
__device__ inline void wait_for(const unsigned* p, unsigned target) {
  for (unsigned polls = 0; int(load_acquire(p) - target) < 0;)
    if (++polls == POLLS) __trap();
}

__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

__device__ inline unsigned cluster_rank() {
  unsigned r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}

__device__ inline unsigned cluster_size() {
  unsigned n;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return n;
}

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Address of the same variable in another block of the cluster.
__device__ inline uint32_t remote(uint32_t local, unsigned rank) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(local), "r"(rank));
  return r;
}

__device__ inline void store_remote(uint32_t address, unsigned v) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// Keeps every multiprocessor busy until the clocks have risen.
__global__ void busy(long long ns) {
  for (long long begin = nanoseconds(); nanoseconds() - begin < ns;) __nanosleep(100);
}

// ---- on the host

struct Shape {
  int blocks;
  int threads = THREADS;
  int shared_bytes = ALONE;
  int cluster = 1;
  bool cooperative = false;
};

struct Config {
  cudaLaunchConfig_t launch = {};
  cudaLaunchAttribute attributes[2] = {};
  Config(const Config&) = delete;
  explicit Config(Shape s) {
    launch.gridDim = s.blocks;
    launch.blockDim = s.threads;
    launch.dynamicSmemBytes = s.shared_bytes;
    launch.attrs = attributes;
    if (s.cluster > 1) {
      cudaLaunchAttribute& a = attributes[launch.numAttrs++];
      a.id = cudaLaunchAttributeClusterDimension;
      a.val.clusterDim = {unsigned(s.cluster), 1, 1};
    }
    if (s.cooperative) {
      cudaLaunchAttribute& a = attributes[launch.numAttrs++];
      a.id = cudaLaunchAttributeCooperative;
      a.val.cooperative = 1;
    }
  }
};

template <class... P>
void allow(void (*kernel)(P...), Shape s) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, s.shared_bytes));
  if (s.cluster > 8) CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

template <class... P, class... A>
void launch(void (*kernel)(P...), Shape s, A... args) {
  allow(kernel, s);
  Config config(s);
  CHECK(cudaLaunchKernelEx(&config.launch, kernel, P(args)...));
}

// Clusters of this shape that the device holds at once.
template <class... P>
int max_clusters(void (*kernel)(P...), Shape s) {
  allow(kernel, s);
  Config config(s);
  int n = 0;
  CHECK(cudaOccupancyMaxActiveClusters(&n, kernel, &config.launch));
  return n;
}

inline int multiprocessors() {
  int n;
  CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
  return n;
}

// Memory of the device, zero at first.
template <class T>
struct Memory {
  T* p = nullptr;
  size_t bytes;
  explicit Memory(size_t n) : bytes(n * sizeof(T)) {
    CHECK(cudaMalloc(&p, bytes));
    clear();
  }
  Memory(const Memory&) = delete;
  ~Memory() { cudaFree(p); }
  void clear() {
    CHECK(cudaMemset(p, 0, bytes));
    CHECK(cudaDeviceSynchronize());  // of other streams too
  }
};

struct Stats {
  double us, us_least, us_most, cycles;  // of one round; the median, and of it the extremes
};

// Runs a launch that fills a Result, several times, and takes the time of one round.
template <class F>
Stats measure(double rounds, F run, int times = 7) {
  Memory<Result> result(1);
  std::vector<std::pair<double, double>> found;
  for (int k = 0; k <= times; ++k) {  // the first one warms up
    result.clear();
    run(result.p);
    Result r;
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(&r, result.p, sizeof r, cudaMemcpyDeviceToHost));
    if (r.wrong) throw std::runtime_error("wrong data: " + std::to_string(r.wrong) + " values");
    if (r.cycles <= 0 || r.ns <= 0) throw std::runtime_error("the kernel wrote no time");
    if (k) found.push_back({1e-3 * r.ns / rounds, r.cycles / rounds});
  }
  std::sort(found.begin(), found.end());
  auto median = found[found.size() / 2];
  return {median.first, found.front().first, found.back().first, median.second};
}

// Checks that a launch computes the right thing; its time does not count.
template <class F>
void verify(F run) {
  measure(1, run, 1);
}

inline void print(const std::string& name, Fields fields) {
  printf("{\"name\": \"%s\"", name.c_str());
  for (auto& [key, value] : fields) printf(", \"%s\": %.6g", key.c_str(), value);
  printf("}\n");
  fflush(stdout);
}

inline void print(const std::string& name, Stats s, Fields more = {}) {
  Fields fields = {{"us", s.us},
                   {"us_least", s.us_least},
                   {"us_most", s.us_most},
                   {"cycles", s.cycles},
                   {"clock_mhz", s.cycles / s.us}};
  fields.insert(fields.end(), more.begin(), more.end());
  print(name, fields);
}

struct Figure {
  std::string name;
  void (*run)(const std::string& name, int value);
  int value;
};

// Runs all figures; what goes wrong with one is its line, and the exit code is then 1.
inline int run_all(const std::vector<Figure>& figures) {
  std::string none;  // why there is no device to run on
  int failed = 0;
  try {
    busy<<<multiprocessors(), THREADS>>>(300'000'000);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
  } catch (const std::exception& error) {
    none = error.what();
  }
  for (auto& f : figures) {
    try {
      if (!none.empty()) throw std::runtime_error(none);
      f.run(f.name, f.value);
    } catch (const std::exception& error) {
      failed = 1;
      printf("{\"name\": \"%s\", \"error\": \"%s\"}\n", f.name.c_str(), error.what());
      fflush(stdout);
      cudaGetLastError();  // or the next figure would be blamed for it
    }
  }
  return failed;
}
