// The barrier of a thread-block cluster: whole, without ordering of memory, and split around other work.
#include "common.cuh"

enum Kind { SYNC, RELAXED, SPLIT, WORK_ONLY };
constexpr int ROUNDS = 4000;
constexpr int WORK = 64;  // dependent multiply-adds, about as long as the barrier or longer

__device__ void work(float& x) {
#pragma unroll
  for (int k = 0; k < WORK; ++k) asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(x) : "f"(0.5f));
}

// With CHECKED every block writes the round into its neighbour's memory and expects the other neighbour's.
template <Kind KIND, bool CHECKED>
__global__ void __launch_bounds__(THREADS) barrier_kernel(int rounds, Result* result) {
  __shared__ unsigned slot[2];
  unsigned next = (cluster_rank() + 1) % cluster_size(), wrong = 0;
  float x = threadIdx.x;
  if (threadIdx.x < 2) slot[threadIdx.x] = ~0u;
  cluster_sync();
  Watch watch;
  watch.start();
  for (int r = 0; r < rounds; ++r) {
    if (CHECKED && threadIdx.x == 0) store_remote(remote(shared_address(&slot[r & 1]), next), r);
    if (KIND == RELAXED) {
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    } else if (KIND != WORK_ONLY) {
      cluster_arrive();
    }
    if (KIND == SPLIT || KIND == WORK_ONLY) work(x);
    if (KIND == RELAXED) {
      asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    } else if (KIND != WORK_ONLY) {
      cluster_wait();
    }
    if (CHECKED) wrong += *(volatile unsigned*)&slot[r & 1] != unsigned(r);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) watch.stop(result);
  if (wrong || x == -1.0f) atomicAdd(&result->wrong, wrong + 1);
  cluster_sync();
}

Shape shape(int size, int clusters) { return {size * clusters, THREADS, ALONE, size}; }

template <Kind KIND>
Stats time_of(Shape s) {
  return measure(ROUNDS, [=](Result* r) { launch(barrier_kernel<KIND, false>, s, ROUNDS, r); });
}

int filling(int size) { return max_clusters(barrier_kernel<SYNC, false>, shape(size, 1)); }

void sync(const std::string& name, int size) {
  verify([=](Result* r) { launch(barrier_kernel<SYNC, true>, shape(size, 1), ROUNDS, r); });
  print(name, time_of<SYNC>(shape(size, 1)), {{"blocks", double(size)}});
}

void sync_full(const std::string& name, int size) {
  int clusters = filling(size);
  if (clusters < 1) throw std::runtime_error("the device holds no cluster of this size");
  verify([=](Result* r) { launch(barrier_kernel<SYNC, true>, shape(size, clusters), ROUNDS, r); });
  print(name, time_of<SYNC>(shape(size, clusters)), {{"blocks", double(size)}, {"clusters", double(clusters)}});
}

void relaxed(const std::string& name, int size) {
  print(name, time_of<RELAXED>(shape(size, 1)), {{"blocks", double(size)}});
}

// What is left of the barrier when work is done between arrival and wait.
void split(const std::string& name, int size) {
  verify([=](Result* r) { launch(barrier_kernel<SPLIT, true>, shape(size, 1), ROUNDS, r); });
  Stats both = time_of<SPLIT>(shape(size, 1)), alone = time_of<WORK_ONLY>(shape(size, 1));
  print(name, {{"us", both.us - alone.us},
               {"cycles", both.cycles - alone.cycles},
               {"blocks", double(size)},
               {"work_us", alone.us},
               {"work_cycles", alone.cycles},
               {"clock_mhz", both.cycles / both.us}});
}

// How many clusters fit when every block wants a multiprocessor to itself, as the kernels with W_hh in registers do.
void fits(const std::string& name, int size) {
  Shape s = shape(size, 1);
  s.shared_bytes = 200 << 10;
  print(name, {{"blocks", double(size)},
               {"clusters", double(max_clusters(barrier_kernel<SYNC, false>, s))},
               {"multiprocessors", double(multiprocessors())}});
}

int main() {
  std::vector<Figure> figures;
  for (int size : {8, 16}) figures.push_back({"clusters_that_fit_" + std::to_string(size), fits, size});
  for (int size : {2, 4, 8, 16}) figures.push_back({"cluster_barrier_" + std::to_string(size), sync, size});
  for (int size : {8, 16}) {
    figures.push_back({"cluster_barrier_split_" + std::to_string(size), split, size});
    figures.push_back({"cluster_barrier_relaxed_" + std::to_string(size), relaxed, size});
    figures.push_back({"cluster_barrier_full_" + std::to_string(size), sync_full, size});
  }
  return run_all(figures);
}
