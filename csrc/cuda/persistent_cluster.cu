// The blocks of a cluster share the hidden units and write into each other's shared memory. sm_90 and newer.
#include "table.cuh"

namespace fusedlstm::gpu {

void add_cluster(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward) {
  add_forward<ClusterForward, 8, 2, 256, Bf16, Fp16, Tf32>(forward);
  add_forward<ClusterForward, 16, 2, 256, Bf16, Fp16, Tf32>(forward);
  add_forward<ClusterForward, 8, 2, 256, Tf32x3>(forward);
  add_forward<ClusterForward, 12, 2, 384, Bf16, Fp16, Tf32>(forward);
  add_backward<ClusterBackward, 2, 8, 2, 256, Bf16, Fp16, Tf32>(backward);
  add_backward<ClusterBackward, 4, 8, 2, 256, Bf16, Fp16, Tf32>(backward);
  add_backward<ClusterBackward, 1, 8, 2, 256, Tf32x3>(backward);
  add_backward<ClusterBackward, 1, 12, 2, 384, Bf16, Fp16, Tf32>(backward);
}

}  // namespace fusedlstm::gpu
