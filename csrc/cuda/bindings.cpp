// The Python module of the CUDA kernels: raw device pointers and the stream come in as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"

namespace py = pybind11;
using namespace fusedlstm::gpu;

namespace {

using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// [T, B, N, H, D, slices, units]
Sizes sizes_of(const std::vector<int64_t>& s, Address offsets = 0, Address fresh = 0) {
  return {s.at(0),
          s.at(1),
          s.at(2),
          int(s.at(3)),
          int(s.at(4)),
          int(s.at(5)),
          int(s.at(6)),
          0,
          pointer<int64_t>(offsets),
          pointer<bool>(fresh)};
}

void check(const std::string& error, const Kernel& kernel) {
  if (!error.empty())
    throw std::runtime_error(std::string("the CUDA kernel ") + kernel.regime + " " + kernel.precision + ": " + error);
}

void forward(int kernel, const std::vector<int64_t>& sizes, int tiles_at_once, Address offsets, Address fresh,
             Address mail, Address flags, Address gx, int64_t gx_stride, Address ids, Address bias, Address w_hh,
             Address h0, Address c0, Address y, Address h_n, Address c_n, Address c, Address gates, Address stream) {
  const ForwardArgs args = {sizes_of(sizes, offsets, fresh),
                            {pointer(mail), pointer<uint32_t>(flags)},
                            pointer(gx),
                            gx_stride,
                            pointer<int64_t>(ids),
                            pointer<float>(bias),
                            pointer(w_hh),
                            pointer(h0),
                            pointer(c0),
                            pointer(y),
                            pointer(h_n),
                            pointer(c_n),
                            pointer<float>(c),
                            pointer(gates)};
  const py::gil_scoped_release unlocked;
  check(run_forward(kernel, args, tiles_at_once, pointer(stream)), forward_kernels().at(kernel));
}

void backward(int kernel, const std::vector<int64_t>& sizes, int tiles_at_once, int k_splits, Address offsets,
              Address fresh, Address mail, Address flags, Address dy, Address dh_n, Address dc_n, Address c0,
              Address w_hh, Address c, Address gates, Address dgates, Address dh0, Address dc0, Address stream) {
  const BackwardArgs args = {sizes_of(sizes, offsets, fresh),
                             {pointer(mail), pointer<uint32_t>(flags)},
                             k_splits,
                             pointer(dy),
                             pointer(dh_n),
                             pointer(dc_n),
                             pointer(c0),
                             pointer(w_hh),
                             pointer<float>(c),
                             pointer(gates),
                             pointer(dgates),
                             pointer(dh0),
                             pointer(dc0)};
  const py::gil_scoped_release unlocked;
  check(run_backward(kernel, args, tiles_at_once, pointer(stream)), backward_kernels().at(kernel));
}

// sizes: [B, L, H, V, slices, units, kept]
GenerateSizes generate_sizes_of(const std::vector<int>& s) {
  return {s.at(0), s.at(1), s.at(2), s.at(3), s.at(4), s.at(5), s.at(6)};
}

void generate(int kernel, const std::vector<int>& sizes, uint64_t seed, float temperature, int top_k, float top_p,
              float min_p, int64_t count, int64_t first, Address weights, Address table, Address bias,
              Address decoder_bias, Address h, Address c, Address last, Address ids, Address mail, Address flags,
              Address stream) {
  const GenerateArgs args = {generate_sizes_of(sizes),
                             {seed, temperature, top_k, top_p, min_p},
                             count,
                             first,
                             pointer(weights),
                             pointer<float>(table),
                             pointer<float>(bias),
                             pointer<float>(decoder_bias),
                             pointer<float>(h),
                             pointer<float>(c),
                             pointer<int64_t>(last),
                             pointer<int64_t>(ids),
                             pointer(mail),
                             pointer<uint32_t>(flags)};
  const py::gil_scoped_release unlocked;
  const std::string error = run_generate(kernel, args, pointer(stream));
  if (!error.empty()) throw std::runtime_error("the CUDA kernel that writes text: " + error);
}

py::list described(const std::vector<Kernel>& kernels) {
  py::list all;
  for (const Kernel& k : kernels)
    all.append(py::make_tuple(k.regime, k.precision, k.kept, k.k_steps, k.splits, k.threads));
  return all;
}

}  // namespace

#ifndef FUSEDLSTM_CUDA_MODULE
#define FUSEDLSTM_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(FUSEDLSTM_CUDA_MODULE, m) {
  m.doc() = "The CUDA kernels of fusedlstm; their caller is fusedlstm.backends.cuda.";
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def(
      "forward_kernels", [] { return described(forward_kernels()); },
      "(regime, precision, kept, k_steps, splits, threads) of each, by number.");
  m.def("backward_kernels", [] { return described(backward_kernels()); });
  m.def("forward_shared_bytes",
        [](int kernel, const std::vector<int64_t>& sizes) { return forward_shared_bytes(kernel, sizes_of(sizes)); });
  m.def("backward_shared_bytes", [](int kernel, const std::vector<int64_t>& sizes, int k_splits) {
    return backward_shared_bytes(kernel, sizes_of(sizes), k_splits);
  });
  m.def("generate", &generate);
  m.def(
      "generate_kernels",
      [] {
        py::list all;
        for (const GenerateKernel& k : generate_kernels())
          all.append(py::make_tuple(k.precision, k.streams, k.threads));
        return all;
      },
      "(precision, streams, threads) of each, by number.");
  m.def("generate_shared_bytes", [](int kernel, const std::vector<int>& sizes) {
    return generate_shared_bytes(kernel, generate_sizes_of(sizes));
  });
  m.def(
      "attributes",
      [](bool forward, int kernel, int threads, int shared_bytes, int cluster) {
        const Attributes a = attributes(forward, kernel, threads, shared_bytes, cluster);
        return py::make_tuple(a.registers, a.local_bytes, a.blocks_per_multiprocessor, a.clusters);
      },
      "Registers, bytes of local memory, blocks a multiprocessor and clusters that fit, as the driver says.");
  m.def(
      "device",
      [](int index) {
        const Device d = device(index);
        return py::make_tuple(d.multiprocessors, d.shared_bytes, d.major, d.minor);
      },
      "Multiprocessors, bytes of shared memory that a block may have, and the compute capability.");
}
