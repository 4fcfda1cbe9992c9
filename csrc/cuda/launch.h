// The kernels by number, for whoever calls them: plain C++, without a CUDA header.
#pragma once
#include <string>
#include <vector>

#include "arguments.h"
#include "generate.h"

namespace fusedlstm::gpu {

// A kernel as it was compiled.
struct Kernel {
  const char* regime;     // "block", "cluster" or "grid"
  const char* precision;  // "bfloat16", "float16", "tf32" or "tf32x3"
  int kept;               // forward: steps along K of W_hh in a warp's registers; backward: matrix tiles of W_hh^T
  int k_steps;            // backward: steps along K, at most; forward: 0
  int splits;             // warps that share a group of 8 hidden units
  int threads;            // at most
};

// A kernel that writes text, as it was compiled.
struct GenerateKernel {
  const char* precision;  // of the weights: "float32" or "bfloat16"
  int streams;            // at most
  int threads;            // at most
};

// What the driver says of a kernel.
struct Attributes {
  int registers, local_bytes, blocks_per_multiprocessor,
      clusters;  // that are on the device at once; 0: none, or no such thing
};

// A device: shared_bytes are those that a block may have.
struct Device {
  int multiprocessors, shared_bytes, major, minor;
};

const std::vector<Kernel>& forward_kernels();
const std::vector<Kernel>& backward_kernels();
std::vector<GenerateKernel> generate_kernels();

// Bytes of shared memory of a block.
int forward_shared_bytes(int kernel, const Sizes& sizes);
int backward_shared_bytes(int kernel, const Sizes& sizes, int k_splits);
int generate_shared_bytes(int kernel, const GenerateSizes& sizes);

// Launches on the stream, at most so many tiles at once; returns "" or the launch's error.
std::string run_forward(int kernel, const ForwardArgs& args, int tiles_at_once, void* stream);
std::string run_backward(int kernel, const BackwardArgs& args, int tiles_at_once, void* stream);

// Launches on the stream, all blocks at once or none; returns "" or the launch's error.
std::string run_generate(int kernel, const GenerateArgs& args, void* stream);

// An error in words is thrown as std::runtime_error.
Device device(int index);

// For blocks of so many threads and bytes, in clusters of so many.
Attributes attributes(bool forward, int kernel, int threads, int shared_bytes, int cluster);

}  // namespace fusedlstm::gpu
