// A buffer as a DLPack capsule, so that torch can own it without this module knowing torch.
// Layout: https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once
#include <cstdint>

namespace fusedlstm {

struct DLTensor {
  void* data;
  struct {
    int32_t type;  // 1: CPU
    int32_t id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code;  // 1: unsigned integer
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;  // null: contiguous
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

}  // namespace fusedlstm
