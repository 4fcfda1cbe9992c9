// What goes through L2: a dependent load, a word handed from one multiprocessor to another, and reading together.
#include "common.cuh"

constexpr int ROUNDS = 2000;

// ---- a chain of loads, each of which names the next

constexpr int WORDS = 1 << 20;  // 4 MB: too much for L1, little for L2
constexpr int STRIDE = 4099;    // prime, and a line apart at least

__global__ void chase_kernel(const unsigned* next, int steps, unsigned expected, Result* result) {
  unsigned at = 0;
  for (int k = 0; k < steps; ++k) at = __ldcg(&next[at]);  // into L2
  Watch watch;
  watch.start();
  for (int k = 0; k < steps; ++k) asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(at) : "l"(next + at) : "memory");
  watch.stop(result);
  result->wrong += at != expected;
}

void load(const std::string& name, int) {
  std::vector<unsigned> next(WORDS);
  for (unsigned k = 0; k < WORDS; ++k) next[k] = (k + STRIDE) % WORDS;
  constexpr int steps = 1 << 14;
  Memory<unsigned> memory(WORDS);
  CHECK(cudaMemcpy(memory.p, next.data(), memory.bytes, cudaMemcpyHostToDevice));
  unsigned expected = 2ull * steps * STRIDE % WORDS;
  print(name, measure(steps,
                      [&](Result* r) { launch(chase_kernel, {1, 1}, (const unsigned*)memory.p, steps, expected, r); }));
}

// ---- a word and what it announces, thrown back and forth between block 0 and another one

// A flag with release and acquire; 16 bytes and then such a flag; word and flag in one store of 8 bytes.
enum Way { FLAG, DATA_AND_FLAG, WORD_WITH_FLAG };

struct alignas(128) Mailbox {
  uint4 data;
  unsigned flag;
  unsigned long long both;
};

template <Way WAY>
__device__ void send(Mailbox* box, unsigned v) {
  if (WAY == WORD_WITH_FLAG) {
    unsigned long long both = (unsigned long long)v << 32 | v;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(&box->both), "l"(both) : "memory");
    return;
  }
  if (WAY == DATA_AND_FLAG) __stcg(&box->data, uint4{v, v, v, v});
  store_release(&box->flag, v);
}

template <Way WAY>
__device__ bool receive(Mailbox* box, unsigned v) {
  if (WAY == WORD_WITH_FLAG) {
    unsigned long long both = 0;
    for (unsigned polls = 0; unsigned(both) != v;) {
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(&box->both) : "memory");
      if (++polls == POLLS) __trap();
    }
    return unsigned(both >> 32) == v;
  }
  wait_for(&box->flag, v);
  if (WAY == FLAG) return true;
  uint4 d = __ldcg(&box->data);
  return d.x == v && d.y == v && d.z == v && d.w == v;
}

template <Way WAY>
__global__ void hop_kernel(Mailbox* boxes, int partner, int rounds, Result* result) {
  bool first = blockIdx.x == 0;
  if (threadIdx.x || (!first && blockIdx.x != partner)) return;
  unsigned wrong = 0;
  Watch watch;
  for (int r = -1; r <= rounds; ++r) {
    unsigned v = r + 2;  // round -1 waits until both are there
    if (r == 0) watch.start();
    if (first) send<WAY>(&boxes[0], v);
    wrong += !receive<WAY>(&boxes[first], v);
    if (!first) send<WAY>(&boxes[1], v);
    if (r == rounds - 1 && first) watch.stop(result);
  }
  if (wrong) atomicAdd(&result->wrong, wrong);
}

// Over several partners, near and far: the median, and the nearest and the farthest.
template <Way WAY>
void hop(const std::string& name, int) {
  int blocks = multiprocessors();
  std::vector<Stats> found;
  Memory<Mailbox> boxes(2);
  for (int partner : {1, 2, blocks / 8, blocks / 4, blocks / 2, 3 * blocks / 4, blocks - 1})
    found.push_back(measure(
        2 * ROUNDS,
        [&](Result* r) {
          boxes.clear();
          launch(hop_kernel<WAY>, {blocks, 32, ALONE, 1, true}, boxes.p, partner, ROUNDS, r);
        },
        3));
  std::sort(found.begin(), found.end(), [](Stats a, Stats b) { return a.us < b.us; });
  Stats middle = found[found.size() / 2];
  print(name, middle, {{"us_nearest", found.front().us}, {"us_farthest", found.back().us}});
}

// ---- all multiprocessors read the same bytes, as those of a grid read all of h

constexpr int VECTORS = 8;  // loads in flight of a thread

__global__ void __launch_bounds__(THREADS) read_kernel(const uint4* from, int vectors, int rounds, Result* result) {
  unsigned sum = 0;
  Watch watch;
  watch.start();
  for (int r = 0; r < rounds; ++r)
    for (int at = threadIdx.x; at < vectors; at += VECTORS * THREADS) {
      uint4 v[VECTORS];
#pragma unroll
      for (int k = 0; k < VECTORS; ++k)
        asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[k].x), "=r"(v[k].y), "=r"(v[k].z), "=r"(v[k].w)
                     : "l"(from + at + k * THREADS));
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) sum += v[k].x + v[k].y + v[k].z + v[k].w;
    }
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.stop(result);
  if (sum != unsigned(rounds) * (vectors / THREADS) * 4 * (threadIdx.x + 1)) atomicAdd(&result->wrong, 1);
}

void read(const std::string& name, int bytes) {
  int vectors = bytes / 16;
  std::vector<uint4> values(vectors);
  for (int k = 0; k < vectors; ++k) {
    unsigned v = k % THREADS + 1;
    values[k] = {v, v, v, v};
  }
  Memory<uint4> memory(vectors);
  CHECK(cudaMemcpy(memory.p, values.data(), bytes, cudaMemcpyHostToDevice));
  constexpr int rounds = 200;
  Stats found = measure(
      rounds, [&](Result* r) { launch(read_kernel, {multiprocessors()}, (const uint4*)memory.p, vectors, rounds, r); });
  print(name, found, {{"bytes", double(bytes)}, {"bytes_per_clock", bytes / found.cycles}});
}

int main() {
  return run_all({{"l2_load", load, 0},
                  {"l2_hop_flag", hop<FLAG>, 0},
                  {"l2_hop_data_and_flag", hop<DATA_AND_FLAG>, 0},
                  {"l2_hop_word_with_flag", hop<WORD_WITH_FLAG>, 0},
                  {"l2_read_32k", read, 32 << 10},
                  {"l2_read_128k", read, 128 << 10}});
}
