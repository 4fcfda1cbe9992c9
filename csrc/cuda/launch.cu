#include <stdexcept>

#include "table.cuh"

namespace fusedlstm::gpu {
namespace {

struct Tables {
  std::vector<ForwardEntry> forward;
  std::vector<BackwardEntry> backward;
  std::vector<Kernel> forward_kernels, backward_kernels;
  Tables() {
    add_block(forward, backward);
    add_cluster(forward, backward);
    add_grid(forward, backward);
    for (const ForwardEntry& entry : forward) forward_kernels.push_back(entry.kernel);
    for (const BackwardEntry& entry : backward) backward_kernels.push_back(entry.kernel);
  }
};

const Tables& tables() {
  static const Tables all;
  return all;
}

std::string words(cudaError_t error) { return error == cudaSuccess ? "" : error_words(error); }

// Tile after tile of sequences, as many at once as may be.
template <class Args>
std::string run(const Kernel& kernel, void (*entry)(Args), Args args, int shared_bytes, int tiles_at_once,
                void* stream) {
  const Sizes& n = args.sizes;
  const bool cluster = kernel.regime[0] == 'c', grid = kernel.regime[0] == 'g';
  const int tiles = static_cast<int>((n.B + TILE - 1) / TILE), threads = n.units / 8 * kernel.splits * 32;
  if (n.units % 8 || n.slices * int64_t(n.units) < n.H || threads > kernel.threads || tiles_at_once < 1 ||
      (!cluster && !grid && n.slices != 1))
    return "the plan does not fit the kernel";
  for (int first = 0; first < tiles; first += tiles_at_once) {
    args.sizes.first_tile = first;
    LaunchShape shape;
    shape.grid = dim3(n.slices, tiles - first < tiles_at_once ? tiles - first : tiles_at_once, n.D);
    shape.block = dim3(threads, 1, 1);
    shape.shared_bytes = shared_bytes;
    shape.cluster = cluster ? n.slices : 1;
    shape.cooperative = grid;
    const cudaError_t error = launch(entry, shape, static_cast<cudaStream_t>(stream), args);
    if (error != cudaSuccess) return words(error);
  }
  return "";
}

}  // namespace

const std::vector<Kernel>& forward_kernels() { return tables().forward_kernels; }
const std::vector<Kernel>& backward_kernels() { return tables().backward_kernels; }

std::vector<GenerateEntry>& generate_table() {
  static std::vector<GenerateEntry> all;
  return all;
}

std::vector<GenerateKernel> generate_kernels() {
  std::vector<GenerateKernel> all;
  for (const GenerateEntry& entry : generate_table()) all.push_back(entry.kernel);
  return all;
}

int forward_shared_bytes(int kernel, const Sizes& sizes) { return tables().forward.at(kernel).shared_bytes(sizes); }
int backward_shared_bytes(int kernel, const Sizes& sizes, int k_splits) {
  return tables().backward.at(kernel).shared_bytes(sizes, k_splits);
}
int generate_shared_bytes(int kernel, const GenerateSizes& sizes) {
  return generate_table().at(kernel).shared_bytes(sizes);
}

std::string run_forward(int kernel, const ForwardArgs& args, int tiles_at_once, void* stream) {
  const ForwardEntry& entry = tables().forward.at(kernel);
  return run(entry.kernel, entry.run, args, entry.shared_bytes(args.sizes), tiles_at_once, stream);
}

std::string run_backward(int kernel, const BackwardArgs& args, int tiles_at_once, void* stream) {
  const BackwardEntry& entry = tables().backward.at(kernel);
  return run(entry.kernel, entry.run, args, entry.shared_bytes(args.sizes, args.k_splits), tiles_at_once, stream);
}

std::string run_generate(int kernel, const GenerateArgs& args, void* stream) {
  const GenerateEntry& entry = generate_table().at(kernel);
  const GenerateSizes& n = args.sizes;
  if (n.units % 4 || n.units * 32 > entry.kernel.threads || n.slices * int64_t(n.units) < n.H || n.B < 1 ||
      n.B > entry.kernel.streams || args.count < 1)
    return "the plan does not fit the kernel";
  LaunchShape shape;
  shape.grid = dim3(n.slices);
  shape.block = dim3(n.units * 32);
  shape.shared_bytes = entry.shared_bytes(n);
  shape.cooperative = true;
  return words(launch(entry.run, shape, static_cast<cudaStream_t>(stream), args));
}

Device device(int index) {
  Device found = {};
  const cudaError_t error = query(index, &found.multiprocessors, &found.shared_bytes, &found.major, &found.minor);
  if (error != cudaSuccess) throw std::runtime_error(words(error));
  return found;
}

Attributes attributes(bool forward, int kernel, int threads, int shared_bytes, int cluster) {
  Attributes found = {};
  const cudaError_t error =
      forward ? query(tables().forward.at(kernel).run, threads, shared_bytes, cluster, &found.registers,
                      &found.local_bytes, &found.blocks_per_multiprocessor, &found.clusters)
              : query(tables().backward.at(kernel).run, threads, shared_bytes, cluster, &found.registers,
                      &found.local_bytes, &found.blocks_per_multiprocessor, &found.clusters);
  if (error != cudaSuccess) throw std::runtime_error(words(error));
  return found;
}

}  // namespace fusedlstm::gpu
