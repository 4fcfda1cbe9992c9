// The blocks of a cooperative grid share the hidden units and talk through L2.
#include "table.cuh"

namespace fusedlstm::gpu {

void add_grid(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward) {
  add_forward<GridForward, 8, 8, 256, Bf16, Fp16, Tf32>(forward);
  add_forward<GridForward, 16, 4, 256, Bf16, Fp16, Tf32>(forward);
  add_forward<GridForward, 4, 8, 256, Tf32x3>(forward);
  add_backward<GridBackward, 8, 2, 8, 256, Bf16, Fp16, Tf32>(backward);
  add_backward<GridBackward, 7, 4, 4, 256, Bf16, Fp16, Tf32>(backward);  // with 8 tiles sm_80 and sm_120 spill
  add_backward<GridBackward, 4, 2, 8, 256, Tf32x3>(backward);
}

}  // namespace fusedlstm::gpu
