// All that is hardware: each function wraps one instruction, so that a CPU can stand in for the GPU by replacing this
// one file (FUSEDLSTM_HOST_SHIM). PTX: https://docs.nvidia.com/cuda/parallel-thread-execution/
#pragma once
#ifdef FUSEDLSTM_HOST_SHIM
#include "shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#define FUSEDLSTM_DEVICE __device__ __forceinline__
#define FUSEDLSTM_KERNEL(max_threads) __global__ void __launch_bounds__(max_threads, 1)

namespace fusedlstm::gpu {

// ---- the block

// The block's dynamic shared memory, aligned to 128 bytes.
FUSEDLSTM_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

FUSEDLSTM_DEVICE void sync_threads() { __syncthreads(); }

// Of `threads` of the block, whole warps; id from 1 to 15.
FUSEDLSTM_DEVICE void sync_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

FUSEDLSTM_DEVICE float exp_fast(float x) { return __expf(x); }
FUSEDLSTM_DEVICE float divide_fast(float a, float b) { return __fdividef(a, b); }

// ---- matrix instructions: d [16, 8] += a [16, 32 bytes] b [32 bytes, 8]. A lane has, with q = lane / 4 and t = lane %
// 4, words of 4 bytes: a[0] row q word t, a[1] row q + 8 word t, a[2] row q word t + 4, a[3] row q + 8 word t + 4; b[0]
// column q word t, b[1] column q word t + 4; d[0], d[1] row q columns 2t, 2t + 1, d[2], d[3] the same of row q + 8.

FUSEDLSTM_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

FUSEDLSTM_DEVICE void mma_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Operands as round_tf32 returns them.
FUSEDLSTM_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Bits of the float rounded to TF32's 10 bits of mantissa, ties away from zero; the other 13 are zeros.
FUSEDLSTM_DEVICE uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Four 8 x 16-byte matrices from shared memory. Lanes 8m to 8m + 7 name the rows of matrix m, 16-byte aligned; a lane
// receives in r[m] word lane % 4 of row lane / 4 of matrix m.
FUSEDLSTM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// ---- global memory shared between blocks

// Past L1, which is not coherent.
FUSEDLSTM_DEVICE uint4 load_16_from_l2(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

// Only brings it there.
FUSEDLSTM_DEVICE void prefetch_to_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

FUSEDLSTM_DEVICE void store_16_to_l2(void* p, uint4 v) {
  asm volatile("st.global.cg.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

FUSEDLSTM_DEVICE uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Ordered after all that this thread, and those it met at a barrier, wrote before.
FUSEDLSTM_DEVICE void store_release(uint32_t* p, uint32_t v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// ---- the cluster (sm_90 and newer)

// An address in the shared memory of any block of the cluster.
using ClusterAddress = uint32_t;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool HAS_CLUSTERS = false;  // and kernels that want one end before they use any of these
FUSEDLSTM_DEVICE void cluster_sync() {}
FUSEDLSTM_DEVICE ClusterAddress remote(const void*, int) { return 0; }
FUSEDLSTM_DEVICE void mbarrier_init(uint64_t*, int) {}
FUSEDLSTM_DEVICE void mbarrier_init_done() {}
FUSEDLSTM_DEVICE void mbarrier_arrive_expect(uint64_t*, uint32_t) {}
FUSEDLSTM_DEVICE void mbarrier_wait(uint64_t*, uint32_t) {}
FUSEDLSTM_DEVICE void store_async(ClusterAddress, uint4, ClusterAddress) {}
#else
constexpr bool HAS_CLUSTERS = true;
FUSEDLSTM_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where the same variable lies in the block of that rank.
FUSEDLSTM_DEVICE ClusterAddress remote(const void* local, int rank) {
  ClusterAddress address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(local))), "r"(rank));
  return address;
}

FUSEDLSTM_DEVICE void mbarrier_init(uint64_t* bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(bar))),
               "r"(arrivals)
               : "memory");
}

// Makes initialised mbarriers known to the cluster, whose barrier must follow.
FUSEDLSTM_DEVICE void mbarrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and has the present phase wait for so many bytes more.
FUSEDLSTM_DEVICE void mbarrier_arrive_expect(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(bar))),
               "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity is over; what completed it can then be read.
FUSEDLSTM_DEVICE void mbarrier_wait(uint64_t* bar, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        " selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(bar))), "r"(parity)
        : "memory");
}

// Stores into a block of the cluster and tells an mbarrier there, which then waits for 16 bytes less.
FUSEDLSTM_DEVICE void store_async(ClusterAddress to, uint4 v, ClusterAddress bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(bar)
               : "memory");
}
#endif

// ---- launches

struct LaunchShape {
  dim3 grid, block;
  int shared_bytes;
  int cluster = 1;           // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are on the device at once, or the launch is refused
};

// Launches kernel(args) on the stream and returns the launch's error.
template <class Args>
cudaError_t launch(void (*kernel)(Args), const LaunchShape& shape, cudaStream_t stream, const Args& args) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error == cudaSuccess && shape.cluster > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, args);
}

inline const char* error_words(cudaError_t error) { return cudaGetErrorString(error); }

inline cudaError_t query(int device, int* multiprocessors, int* shared_bytes, int* major, int* minor) {
  const std::pair<int*, cudaDeviceAttr> asked[] = {{multiprocessors, cudaDevAttrMultiProcessorCount},
                                                   {shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                                                   {major, cudaDevAttrComputeCapabilityMajor},
                                                   {minor, cudaDevAttrComputeCapabilityMinor}};
  for (const auto& [value, attribute] : asked)
    if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device); error != cudaSuccess) return error;
  return cudaSuccess;
}

// Registers and bytes of local memory of a thread, and how many blocks, or clusters of them, the device holds at once.
template <class Args>
cudaError_t query(void (*kernel)(Args), int threads, int shared_bytes, int cluster, int* registers, int* local_bytes,
                  int* blocks, int* clusters) {
  cudaFuncAttributes found;
  cudaError_t error = cudaFuncGetAttributes(&found, kernel);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, static_cast<size_t>(shared_bytes));
  if (error != cudaSuccess) return error;
  *registers = found.numRegs, *local_bytes = static_cast<int>(found.localSizeBytes), *clusters = 0;
  if (cluster == 1) return error;
  if (cluster > 8) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(cluster);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

}  // namespace fusedlstm::gpu
#endif
