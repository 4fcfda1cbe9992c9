// Barriers of a whole grid through L2: a counter, a flag for each block, CUDA's own, and clusters with a counter.
#include <cooperative_groups.h>

#include "common.cuh"

enum Kind { COUNTER, FLAGS, PADDED_FLAGS, GRID_SYNC, TWO_LEVELS };
constexpr int ROUNDS = 2000;
constexpr int MOST = 256;  // blocks
constexpr int PAD = 8;     // flags apart, so that each has its own 32 bytes

struct State {
  unsigned counter, pad[31];
  unsigned flags[MOST * PAD];
  unsigned data[2][MOST];
};

template <Kind KIND>
__device__ void barrier(State* state, unsigned round) {
  unsigned blocks = gridDim.x, done = round + 1;
  if (KIND == GRID_SYNC) {
    cooperative_groups::this_grid().sync();
  } else if (KIND == COUNTER) {
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(&state->counter, 1);
      wait_for(&state->counter, done * blocks);
    }
    __syncthreads();
  } else if (KIND == TWO_LEVELS) {
    cluster_sync();
    if (cluster_rank() == 0 && threadIdx.x == 0) {
      add_release(&state->counter, 1);
      wait_for(&state->counter, done * (blocks / cluster_size()));
    }
    cluster_sync();
  } else {
    constexpr int stride = KIND == FLAGS ? 1 : PAD;
    __syncthreads();
    if (threadIdx.x == 0) store_release(&state->flags[blockIdx.x * stride], done);
    if (threadIdx.x < blocks) wait_for(&state->flags[threadIdx.x * stride], done);
    __syncthreads();
  }
}

// With CHECKED every block writes the round before the barrier and expects everybody's after it.
template <Kind KIND, bool CHECKED>
__global__ void __launch_bounds__(THREADS) barrier_kernel(State* state, int rounds, Result* result) {
  unsigned wrong = 0;
  barrier<KIND>(state, 0);  // all are there
  Watch watch;
  watch.start();
  for (int r = 1; r <= rounds; ++r) {
    unsigned* data = state->data[r & 1];
    if (CHECKED && threadIdx.x == 0) __stcg(&data[blockIdx.x], unsigned(r));
    barrier<KIND>(state, r);
    if (CHECKED && threadIdx.x < gridDim.x) wrong += __ldcg(&data[threadIdx.x]) != unsigned(r);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) watch.stop(result);
  if (wrong) atomicAdd(&result->wrong, wrong);
}

template <Kind KIND>
void time(const std::string& name, Shape s, Fields fields) {
  Memory<State> state(1);
  auto once = [&](auto kernel, Result* r) {
    state.clear();
    launch(kernel, s, state.p, ROUNDS, r);
  };
  verify([&](Result* r) { once(barrier_kernel<KIND, true>, r); });
  print(name, measure(ROUNDS, [&](Result* r) { once(barrier_kernel<KIND, false>, r); }), fields);
}

template <Kind KIND>
void grid(const std::string& name, int blocks) {
  blocks = blocks ? blocks : std::min(multiprocessors(), MOST);
  time<KIND>(name, {blocks, THREADS, ALONE, 1, true}, {{"blocks", double(blocks)}});
}

void two_levels(const std::string& name, int size) {
  Shape s{size, THREADS, ALONE, size};
  int clusters = std::min(max_clusters(barrier_kernel<TWO_LEVELS, false>, s), MOST / size);
  if (clusters < 1) throw std::runtime_error("the device holds no cluster of this size");
  s.blocks *= clusters;
  s.cooperative = true;
  time<TWO_LEVELS>(name, s, {{"blocks", double(s.blocks)}, {"cluster", double(size)}});
}

int main() {
  std::vector<Figure> figures;
  for (int blocks : {16, 32, 64, 128, 0}) {
    std::string n = blocks ? std::to_string(blocks) : "full";
    figures.push_back({"grid_barrier_counter_" + n, grid<COUNTER>, blocks});
    figures.push_back({"grid_barrier_flags_" + n, grid<FLAGS>, blocks});
  }
  for (int blocks : {16, 0}) {
    std::string n = blocks ? std::to_string(blocks) : "full";
    figures.push_back({"grid_barrier_padded_flags_" + n, grid<PADDED_FLAGS>, blocks});
    figures.push_back({"grid_barrier_cuda_" + n, grid<GRID_SYNC>, blocks});
  }
  for (int size : {8, 16}) figures.push_back({"grid_barrier_two_levels_" + std::to_string(size), two_levels, size});
  return run_all(figures);
}
