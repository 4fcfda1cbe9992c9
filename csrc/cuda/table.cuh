// Kernels with what tells them apart, for the tables of launch.cu; one .cu a regime compiles them.
#pragma once
#include "backward.cuh"
#include "forward.cuh"
#include "launch.h"

namespace fusedlstm::gpu {

struct ForwardEntry {
  Kernel kernel;
  void (*run)(ForwardArgs);
  int (*shared_bytes)(const Sizes&);
};

struct BackwardEntry {
  Kernel kernel;
  void (*run)(BackwardArgs);
  int (*shared_bytes)(const Sizes&, int k_splits);
};

struct GenerateEntry {
  GenerateKernel kernel;
  void (*run)(GenerateArgs);
  int (*shared_bytes)(const GenerateSizes&);
};

template <class Precision>
constexpr const char* name_of = "";
template <>
constexpr const char* name_of<Bf16> = "bfloat16";
template <>
constexpr const char* name_of<Fp16> = "float16";
template <>
constexpr const char* name_of<Fp32> = "float32";
template <>
constexpr const char* name_of<Tf32> = "tf32";
template <>
constexpr const char* name_of<Tf32x3> = "tf32x3";

template <class Precision, template <class> class Exchange, int KEPT, int KS, int THREADS>
ForwardEntry forward_entry() {
  return {{Exchange<Precision>::REGIME, name_of<Precision>, KEPT, 0, KS, THREADS},
          lstm_forward_kernel<Precision, Exchange, KEPT, KS, THREADS>,
          [](const Sizes& n) {
            return forward_shared<Exchange<Precision>>(n, sizeof(typename Precision::E), KEPT, KS).bytes;
          }};
}

template <class Precision, template <class> class Exchange, int KEPT, int K_STEPS, int KS, int THREADS>
BackwardEntry backward_entry() {
  return {{Exchange<Precision>::REGIME, name_of<Precision>, KEPT, K_STEPS, KS, THREADS},
          lstm_backward_kernel<Precision, Exchange, KEPT, K_STEPS, KS, THREADS>,
          [](const Sizes& n, int k_splits) {
            return backward_shared<Exchange<Precision>>(n, sizeof(typename Precision::E), KEPT, KS, k_splits).bytes;
          }};
}

// An entry for each of the precisions.
template <template <class> class Exchange, int KEPT, int KS, int THREADS, class... Precisions>
void add_forward(std::vector<ForwardEntry>& table) {
  (table.push_back(forward_entry<Precisions, Exchange, KEPT, KS, THREADS>()), ...);
}

template <template <class> class Exchange, int KEPT, int K_STEPS, int KS, int THREADS, class... Precisions>
void add_backward(std::vector<BackwardEntry>& table) {
  (table.push_back(backward_entry<Precisions, Exchange, KEPT, K_STEPS, KS, THREADS>()), ...);
}

void add_block(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward);
void add_cluster(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward);
void add_grid(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward);

// generate.cu adds to it when the module is loaded; a module without that file writes no text.
std::vector<GenerateEntry>& generate_table();

}  // namespace fusedlstm::gpu
