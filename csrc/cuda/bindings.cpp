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
