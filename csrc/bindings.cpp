// The Python module: raw pointers come in as integers, the GIL is released around every call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "dlpack.h"

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
  LayerForward args{shape_of(sizes, batch_sizes),
                    pointer(x),
                    pointer<int64_t>(ids),
                    pointer(h0),
                    pointer(c0),
                    {},
                    pointer(y),
                    pointer(h_n),
                    pointer(c_n),
                    pointer(c),
                    pointer(gates)};
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

// Sizes are [L, V, H].
std::unique_ptr<cpu::Generator> generator(int precision, const std::array<int64_t, 3>& sizes, Address table,
                                          Address weights, Address scales, Address biases, Address decoder,
                                          Address decoder_scales, Address decoder_bias) {
  const cpu::Stack stack{sizes[0],
                         sizes[1],
                         sizes[2],
                         pointer<float>(table),
                         pointer(weights),
                         pointer<float>(scales),
                         pointer<float>(biases),
                         pointer(decoder),
                         pointer<float>(decoder_scales),
                         pointer<float>(decoder_bias)};
  const py::gil_scoped_release unlocked;
  return std::unique_ptr<cpu::Generator>(cpu::engine().generator(static_cast<cpu::Precision>(precision), stack));
}

// A choice is (seed, temperature, top_k, top_p, min_p); none: the characters are given.
using Choices = std::optional<std::tuple<uint64_t, double, int64_t, double, double>>;

void run(const cpu::Generator& self, int threads, int64_t B, int64_t steps, int64_t position, const Choices& choices,
         Address ids, Address last, Address h, Address c, Address nats) {
  const auto choice = choices ? std::make_from_tuple<cpu::Choice>(*choices) : cpu::Choice{};
  const cpu::Passage passage{B,
                             steps,
                             position,
                             choices ? &choice : nullptr,
                             pointer<int64_t>(ids),
                             pointer<int64_t>(last),
                             pointer<float>(h),
                             pointer<float>(c),
                             pointer<float>(nats)};
  const py::gil_scoped_release unlocked;
  self.run(passage, threads);
}

double peak(int dtype, int threads, double seconds) {
  const py::gil_scoped_release unlocked;
  return cpu::engine().peak(static_cast<DType>(dtype), threads, seconds);
}

// A kept buffer as bytes [bytes]; whoever consumes the capsule gives it back by calling the deleter.
py::capsule buffer(int64_t bytes) {
  struct Lent {
    DLManagedTensor managed;
    int64_t shape;
  };
  void* memory = cpu::take_buffer(static_cast<size_t>(bytes));
  auto* lent = new Lent{{{memory, {1, 0}, 1, {1, 8, 1}, nullptr, nullptr, 0}, nullptr, nullptr}, bytes};
  lent->managed.tensor.shape = &lent->shape;
  lent->managed.context = lent;
  lent->managed.deleter = [](DLManagedTensor* self) {
    cpu::give_back_buffer(self->tensor.data);
    delete static_cast<Lent*>(self->context);
  };
  return py::capsule(&lent->managed, "dltensor", [](PyObject* capsule) {
    // A consumed capsule has another name, and its consumer calls the deleter.
    if (auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor")))
      managed->deleter(managed);
    else
      PyErr_Clear();
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native engine of fusedlstm; its callers are fusedlstm.backends.";
  m.def("layer_forward", &layer_forward);
  m.def("layer_backward", &layer_backward);
  py::class_<cpu::Generator>(m, "Generator", "The packed weights of a stack that reads characters and writes them.")
      .def(py::init(&generator))
      .def("run", &run);
  m.def("peak", &peak, "FLOP/s of the micro-kernel on data in the L1 cache.");
  m.def("buffer", &buffer, "A large buffer that is kept for reuse when it is freed, as a DLPack capsule of bytes.");
  m.def("release_buffers", &cpu::release_buffers, "Give the kept buffers back to the system.");
  m.def("engine", [] { return cpu::engine().name; }, "The instruction set in use.");
  m.def("available_engines", &cpu::available_engines, "Instruction sets that this processor has, widest first.");
  m.def("select_engine", &cpu::select, "Use the named instruction set from now on.");
}
