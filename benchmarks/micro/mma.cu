// Multiply-adds a clock of mma.sync m16n8k16 in bfloat16: from registers alone, and with one operand from shared
// memory by ldmatrix, as a kernel that keeps W_hh in registers and reads h has it.
#include "common.cuh"

constexpr int ROUNDS = 512;
constexpr int DEPTH = 16;              // products in a row on one accumulator, each with its own part of W_hh and h
constexpr int PITCH = 16 * DEPTH + 8;  // of a row of h in halves: no two rows of a matrix share a bank
constexpr uint32_t ONE = 0x3F80, TWO = 0x4000;  // in bfloat16

__device__ uint32_t pair(uint32_t v) { return v | v << 16; }

__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A holds 1 in even rows and 2 in odd ones, B the same in its columns: so is every sum known.
template <int TILES, bool SHARED>
__global__ void __launch_bounds__(512) mma_kernel(int rounds, Result* result) {
  __shared__ __align__(16) uint16_t h[2][TILES * 8 * PITCH];  // two, as steps alternate
  __shared__ uint32_t w[2];
  int lane = threadIdx.x % 32, g = lane / 4;
  uint32_t a[DEPTH][4], column = pair(g % 2 ? TWO : ONE);
  for (int k = threadIdx.x; k < TILES * 8 * PITCH; k += blockDim.x) h[0][k] = h[1][k] = k / PITCH % 2 ? TWO : ONE;
  if (threadIdx.x < 2) w[threadIdx.x] = pair(threadIdx.x ? TWO : ONE);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < DEPTH; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[k][i] = *(volatile uint32_t*)&w[g % 2];  // rows g and g + 8; volatile, or all would be one register
  float d[TILES][4];
#pragma unroll
  for (int n = 0; n < TILES; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) d[n][i] = n;  // tiles that were the same would be computed once
  Watch watch;
  watch.start();
#pragma unroll 1
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int k = 0; k < DEPTH; ++k)
#pragma unroll
      for (int n = 0; n < TILES; n += 2) {
        uint32_t b[4] = {column, column, column, column};
        if (SHARED) {
          uint32_t row =
              shared_address(&h[r & 1][(n * 8 + lane % 8 + lane / 16 * 8) * PITCH + k * 16 + lane / 8 % 2 * 8]);
          asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                       : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                       : "r"(row));
        }
        mma(d[n], a[k], b[0], b[1]);
        mma(d[n + 1], a[k], b[2], b[3]);
      }
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.stop(result);
  unsigned wrong = 0;
  float row = float(rounds) * DEPTH * 16 * (1 + g % 2);
#pragma unroll
  for (int n = 0; n < TILES; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) wrong += d[n][i] != n + row * (1 + i % 2);
  if (wrong) atomicAdd(&result->wrong, wrong);
}

template <int TILES, bool SHARED>
void run(const std::string& name, int warps) {
  // Times are a whole loop's on every multiprocessor: a clock that falls under load falls here too.
  Stats found = measure(
      ROUNDS, [=](Result* r) { launch(mma_kernel<TILES, SHARED>, {multiprocessors(), 32 * warps}, ROUNDS, r); });
  double macs = 16.0 * 8 * 16 * DEPTH * TILES * warps;
  print(name, found, {{"warps", double(warps)}, {"columns", 8.0 * TILES}, {"macs_per_clock", macs / found.cycles}});
}

template <int TILES>
void add(std::vector<Figure>& figures) {
  for (int warps : {4, 8, 16}) {
    std::string n = std::to_string(warps) + "_warps_" + std::to_string(8 * TILES) + "_columns";
    figures.push_back({"mma_registers_" + n, run<TILES, false>, warps});
    figures.push_back({"mma_ldmatrix_" + n, run<TILES, true>, warps});
  }
}

int main() {
  std::vector<Figure> figures;
  add<2>(figures);
  add<4>(figures);
  return run_all(figures);
}
