// The Python module: raw pointers come in as integers, the GIL is released around every call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <array>
#include <vector>

#include "cpu/dispatch.h"

namespace py = pybind11;
using namespace fusedlstm;

namespace {

using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Sizes are [T, B, N, I, H, D].
LayerShape shape_of(const std::array<int64_t, 6>& sizes, Address batch_sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], pointer<int64_t>(batch_sizes)};
}

// Addresses are four a direction: w_ih, w_hh, b_ih, b_hh.
void read_weights(const std::vector<Address>& addresses, DirectionWeights* weights) {
  for (size_t d = 0; 4 * d < addresses.size(); ++d)
    weights[d] = {pointer(addresses[4 * d]), pointer(addresses[4 * d + 1]), pointer(addresses[4 * d + 2]),
                  pointer(addresses[4 * d + 3])};
}

void layer_forward(int dtype, int threads, const std::array<int64_t, 6>& sizes, Address batch_sizes, Address x,
                   Address ids, Address h0, Address c0, const std::vector<Address>& weights, Address y, Address h_n,
                   Address c_n, Address c, Address gates) {
  LayerForward args{shape_of(sizes, batch_sizes), pointer(x),   pointer<int64_t>(ids), pointer(h0),
                    pointer(c0),                  {},           pointer(y),            pointer(h_n),
                    pointer(c_n),                 pointer(c),   pointer(gates)};
  read_weights(weights, args.weights);
  const py::gil_scoped_release unlocked;
  cpu::engine().forward(static_cast<DType>(dtype), args, threads);
}

void layer_backward(int dtype, int threads, const std::array<int64_t, 6>& sizes, Address batch_sizes, Address dy,
                    Address dh_n, Address dc_n, Address x, Address ids, Address h0, Address c0,
                    const std::vector<Address>& weights, Address y, Address c, Address gates, Address dx, Address dh0,
                    Address dc0, const std::vector<Address>& dweights) {
  LayerBackward args{shape_of(sizes, batch_sizes),
                     pointer(dy),
                     pointer(dh_n),
                     pointer(dc_n),
                     pointer(x),
                     pointer<int64_t>(ids),
                     pointer(h0),
                     pointer(c0),
                     {},
                     pointer(y),
                     pointer(c),
                     pointer(gates),
                     pointer(dx),
                     pointer(dh0),
                     pointer(dc0),
                     {}};
  read_weights(weights, args.weights);
  for (size_t d = 0; 3 * d < dweights.size(); ++d)  // three a direction: dw_ih, dw_hh, db
    args.gradients[d] = {pointer(dweights[3 * d]), pointer(dweights[3 * d + 1]), pointer(dweights[3 * d + 2])};
  const py::gil_scoped_release unlocked;
  cpu::engine().backward(static_cast<DType>(dtype), args, threads);
}

double peak(int dtype, int threads, double seconds) {
  const py::gil_scoped_release unlocked;
  return cpu::engine().peak(static_cast<DType>(dtype), threads, seconds);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native engine of fusedlstm; its callers are fusedlstm.backends.";
  m.def("layer_forward", &layer_forward);
  m.def("layer_backward", &layer_backward);
  m.def("peak", &peak, "FLOP/s of the micro-kernel on data in the L1 cache.");
  m.def("engine", [] { return cpu::engine().name; }, "The instruction set in use.");
  m.def("available_engines", &cpu::available_engines, "Instruction sets that this processor has, widest first.");
  m.def("select_engine", &cpu::select, "Use the named instruction set from now on.");
}
