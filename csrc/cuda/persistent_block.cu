// One block has all hidden units of its sequences: no two blocks wait for each other.
#include "table.cuh"

namespace fusedlstm::gpu {

void add_block(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward) {
  add_forward<BlockForward, 4, 1, 256, Bf16, Fp16, Tf32>(forward);
  add_forward<BlockForward, 2, 1, 256, Tf32x3>(forward);
  add_forward<BlockForward, 6, 1, 512, Bf16, Fp16, Tf32>(forward);
  add_backward<BlockBackward, 1, 8, 1, 256, Bf16, Fp16, Tf32, Tf32x3>(backward);
  add_backward<BlockBackward, 1, 4, 1, 512, Bf16, Fp16, Tf32>(backward);
}

}  // namespace fusedlstm::gpu
