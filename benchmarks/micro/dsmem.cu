// Distributed shared memory: the latency of one store to another block of the cluster, by every way there is, and
// the time in which all blocks of a cluster give each other their slices of h.
#include "common.cuh"

// Ways to hand something over: a plain store and the cluster's barrier; a store and a release of a flag or of an
// mbarrier; an asynchronous store, or a bulk copy, that itself completes the receiver's mbarrier.
enum Way { BARRIER, FLAG, MBARRIER, ST_ASYNC, BULK };
constexpr int ROUNDS = 2000;

__device__ void mbarrier_init(uint64_t* bar) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(bar)) : "memory");
}

// Makes initialised mbarriers known to the cluster; its barrier must follow.
__device__ void mbarrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ void mbarrier_expect(uint64_t* bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
               "r"(bytes)
               : "memory");
}

__device__ void mbarrier_arrive(uint32_t remote_bar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote_bar) : "memory");
}

// One try, which may sleep for a while. Data that complete the mbarrier themselves are there with it; what plain
// stores of another block wrote must also be acquired.
template <bool ACQUIRE>
__device__ bool mbarrier_try(uint64_t* bar, unsigned parity) {
  unsigned done;
  if (ACQUIRE) {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        " selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
  } else {
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
  }
  return done;
}

template <bool ACQUIRE>
__device__ void mbarrier_wait(uint64_t* bar, unsigned parity) {
  if (mbarrier_try<ACQUIRE>(bar, parity)) return;
  for (long long begin = clock64(); !mbarrier_try<ACQUIRE>(bar, parity);)
    if (clock64() - begin > WAIT_CYCLES) __trap();
}

__device__ void st_async(uint32_t to, unsigned v, uint32_t bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(v), "r"(bar)
               : "memory");
}

__device__ void st_async(uint32_t to, uint4 v, uint32_t bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(bar)
               : "memory");
}

// Before a bulk copy reads what ordinary stores have written.
__device__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ void bulk_copy(uint32_t to, const void* from, unsigned bytes, uint32_t bar) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(shared_address(from)), "r"(bytes), "r"(bar)
               : "memory");
}

// ---- latency: the first and the last block of a cluster throw a number back and forth

struct alignas(16) Mailbox {
  uint4 in;   // the number is its first word
  uint4 out;  // what a bulk copy reads
  uint64_t bar;
  unsigned flag;
};

template <Way WAY>
__device__ void send(Mailbox& box, unsigned to, unsigned v) {
  uint32_t in = remote(shared_address(&box.in), to), bar = remote(shared_address(&box.bar), to);
  if (WAY == ST_ASYNC) {
    st_async(in, v, bar);
  } else if (WAY == BULK) {
    box.out.x = v;
    fence_async();
    bulk_copy(in, &box.out, sizeof box.out, bar);
  } else {
    store_remote(in, v);
    if (WAY == MBARRIER) mbarrier_arrive(bar);
    if (WAY == FLAG)
      asm volatile("st.release.cluster.shared::cluster.u32 [%0], %1;" ::"r"(remote(shared_address(&box.flag), to)),
                   "r"(v)
                   : "memory");
  }
}

template <Way WAY>
__device__ unsigned receive(Mailbox& box, unsigned v, unsigned phase) {
  if (WAY == ST_ASYNC) mbarrier_expect(&box.bar, sizeof(unsigned));
  if (WAY == BULK) mbarrier_expect(&box.bar, sizeof box.in);
  if (WAY == FLAG) {
    unsigned seen = 0;
    for (unsigned polls = 0; seen != v;) {
      asm volatile("ld.acquire.cluster.shared::cta.u32 %0, [%1];"
                   : "=r"(seen)
                   : "r"(shared_address(&box.flag))
                   : "memory");
      if (++polls == POLLS) __trap();
    }
  } else {
    mbarrier_wait<WAY == MBARRIER>(&box.bar, phase);
  }
  return *(volatile unsigned*)&box.in.x;
}

template <Way WAY>
__global__ void __launch_bounds__(THREADS) hop_kernel(int rounds, Result* result) {
  __shared__ Mailbox box;
  __shared__ unsigned slot[2];
  unsigned rank = cluster_rank(), last = cluster_size() - 1, wrong = 0;
  if (threadIdx.x == 0) {
    mbarrier_init(&box.bar);
    mbarrier_init_done();
    box.flag = ~0u;
  }
  cluster_sync();
  Watch watch;
  watch.start();
  if (WAY == BARRIER) {  // a round is one hop, of every block to its neighbour
    for (int r = 0; r < 2 * rounds; ++r) {
      if (threadIdx.x == 0) store_remote(remote(shared_address(&slot[r & 1]), rank == last ? 0 : rank + 1), r);
      cluster_sync();
      wrong += *(volatile unsigned*)&slot[r & 1] != unsigned(r);
    }
  } else if (threadIdx.x == 0 && rank == 0) {
    for (int r = 0; r < rounds; ++r) {
      send<WAY>(box, last, r);
      wrong += receive<WAY>(box, r, r & 1) != unsigned(r);
    }
  } else if (threadIdx.x == 0 && rank == last) {
    for (int r = 0; r < rounds; ++r) {
      unsigned v = receive<WAY>(box, r, r & 1);
      wrong += v != unsigned(r);
      send<WAY>(box, 0, v);
    }
  }
  if (threadIdx.x == 0 && rank == 0) watch.stop(result);
  if (wrong) atomicAdd(&result->wrong, wrong);
  cluster_sync();  // nobody leaves while another may still write to it
}

template <Way WAY>
void hop(const std::string& name, int size) {
  auto run = [=](Result* r) { launch(hop_kernel<WAY>, {size, THREADS, ALONE, size}, ROUNDS, r); };
  print(name, measure(2 * ROUNDS, run), {{"blocks", double(size)}});
}

// ---- all-gather: every block writes its slice of `bytes` into every block, twice buffered, a round after the other

__device__ uint4 payload(unsigned round, unsigned index) {
  unsigned v = round * 0x9E3779B9u + 4 * index;
  return {v, v + 1, v + 2, v + 3};
}

template <Way WAY, bool CHECKED>
__global__ void __launch_bounds__(THREADS) gather_kernel(int bytes, int rounds, Result* result) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ uint64_t bar[2];
  unsigned rank = cluster_rank(), size = cluster_size(), wrong = 0;
  int slice = bytes / size, vectors = slice / 16;  // all powers of two
  int shift = 31 - __clz(vectors);
  unsigned char* staged = memory + 2 * bytes;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar[0]);
    mbarrier_init(&bar[1]);
    mbarrier_init_done();
  }
  cluster_sync();
  Watch watch;
  watch.start();
  for (int r = 0; r < rounds; ++r) {
    unsigned char *buffer = memory + (r & 1) * bytes, *own = staged + (r & 1) * slice;
    uint64_t* b = &bar[r & 1];
    if (WAY != BARRIER && threadIdx.x == 0) mbarrier_expect(b, bytes);
    if (WAY == BULK) {
      for (int v = threadIdx.x; v < vectors; v += THREADS) ((uint4*)own)[v] = payload(r, rank * vectors + v);
      fence_async();
      __syncthreads();
      if (threadIdx.x < size) {
        unsigned to = (rank + threadIdx.x) & (size - 1);
        bulk_copy(remote(shared_address(buffer + rank * slice), to), own, slice, remote(shared_address(b), to));
      }
    } else {
      for (int k = threadIdx.x; k < int(vectors * size); k += THREADS) {
        unsigned to = (rank + (k >> shift)) & (size - 1), v = k & (vectors - 1);
        uint4 p = payload(r, rank * vectors + v);
        uint32_t there = remote(shared_address(buffer + rank * slice + 16 * v), to);
        if (WAY == ST_ASYNC) {
          st_async(there, p, remote(shared_address(b), to));
        } else {
          asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(there), "r"(p.x), "r"(p.y), "r"(p.z),
                       "r"(p.w)
                       : "memory");
        }
      }
    }
    // A block sends round r only when it has all of round r - 1, hence when everybody is done with r - 2.
    if (WAY == BARRIER) {
      cluster_sync();
    } else {
      mbarrier_wait<false>(b, (r >> 1) & 1);
    }
    if (CHECKED) {
      for (int v = threadIdx.x; v < bytes / 16; v += THREADS) {
        uint4 p = payload(r, v), q = ((const uint4*)buffer)[v];
        wrong += p.x != q.x || p.y != q.y || p.z != q.z || p.w != q.w;
      }
      __syncthreads();
    }
  }
  if (threadIdx.x == 0 && rank == 0) watch.stop(result);
  if (wrong) atomicAdd(&result->wrong, wrong);
  cluster_sync();  // what a bulk copy reads must stay until it is done
}

template <Way WAY, int BYTES>
void gather(const std::string& name, int size) {
  Shape s{size, THREADS, ALONE, size};
  static_assert(2 * BYTES + 2 * BYTES / 8 <= ALONE, "two buffers, and two slices that bulk copies read");
  verify([=](Result* r) { launch(gather_kernel<WAY, true>, s, BYTES, ROUNDS, r); });
  Stats found = measure(ROUNDS, [=](Result* r) { launch(gather_kernel<WAY, false>, s, BYTES, ROUNDS, r); });
  print(name, found,
        {{"blocks", double(size)}, {"bytes", double(BYTES)}, {"gb_per_s_and_block", 1e-3 * BYTES / found.us}});
}

template <Way WAY>
void add(std::vector<Figure>& figures, const std::string& way) {
  for (int size : {8, 16}) {
    std::string n = "_" + std::to_string(size);
    figures.push_back({"dsmem_gather_8k_" + way + n, gather<WAY, 8 << 10>, size});
    figures.push_back({"dsmem_gather_32k_" + way + n, gather<WAY, 32 << 10>, size});
  }
}

int main() {
  std::vector<Figure> figures;
  for (int size : {2, 8, 16}) {
    std::string n = "_" + std::to_string(size);
    figures.push_back({"dsmem_hop_st_async" + n, hop<ST_ASYNC>, size});
    figures.push_back({"dsmem_hop_barrier" + n, hop<BARRIER>, size});
    figures.push_back({"dsmem_hop_mbarrier" + n, hop<MBARRIER>, size});
    figures.push_back({"dsmem_hop_flag" + n, hop<FLAG>, size});
    figures.push_back({"dsmem_hop_bulk" + n, hop<BULK>, size});
  }
  add<ST_ASYNC>(figures, "st_async");
  add<BULK>(figures, "bulk");
  add<BARRIER>(figures, "barrier");
  return run_all(figures);
}
