// The kernels that write text, for so many streams and each type of the weights.
#include "generate.cuh"
#include "table.cuh"

namespace fusedlstm::gpu {
namespace {

template <class Precision, int STREAMS, int THREADS>
GenerateEntry entry() {
  return {{name_of<Precision>, STREAMS, THREADS},
          lstm_generate_kernel<Precision, STREAMS, THREADS>,
          [](const GenerateSizes& n) { return generate_shared(n, STREAMS, PARTS<Precision>).bytes; }};
}

template <int STREAMS, int THREADS, class... Precisions>
bool add() {
  (generate_table().push_back(entry<Precisions, STREAMS, THREADS>()), ...);
  return true;
}

[[maybe_unused]] const bool added = add<1, 512, Fp32, Bf16>() && add<4, 384, Fp32, Bf16>() && add<8, 384, Fp32, Bf16>();

}  // namespace
}  // namespace fusedlstm::gpu
