// The LSTM cell, forward and backward: the only copy of the formulae.
//
//   i, f, o = Math::sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)      g = tanh(a_g)
//   c_t = f * c_{t-1} + i * g                               h_t = o * tanh(c_t)
//
// V is a number or a vector of them; Math brings its sigmoid(V) and tanh(V).
#pragma once

#if defined(__CUDACC__)
#define FUSEDLSTM_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDLSTM_INLINE inline __attribute__((always_inline))
#endif

namespace fusedlstm {

template <class V>
struct Gates {
  V i, f, g, o;
};

// Turns pre-activations into gates in place; c comes in as c_{t-1} and leaves as c_t.
template <class Math, class V>
FUSEDLSTM_INLINE void cell_state(Gates<V>& a, V& c) {
  a.i = Math::sigmoid(a.i);
  a.f = Math::sigmoid(a.f);
  a.g = Math::tanh(a.g);
  a.o = Math::sigmoid(a.o);
  c = a.f * c + a.i * a.g;
}

// h_t from the output gate and c_t.
template <class Math, class V>
FUSEDLSTM_INLINE V cell_output(V o, V c) {
  return o * Math::tanh(c);
}

// Gradients of the pre-activations; dc comes in as the carry from t+1 and leaves as the carry to t-1.
template <class Math, class V>
FUSEDLSTM_INLINE Gates<V> cell_backward(const Gates<V>& a, V c_prev, V c, V dh, V& dc) {
  const V tanh_c = Math::tanh(c);
  const V dct = dc + dh * a.o * (1 - tanh_c * tanh_c);
  dc = dct * a.f;
  return {dct * a.g * a.i * (1 - a.i), dct * c_prev * a.f * (1 - a.f), dct * a.i * (1 - a.g * a.g),
          dh * tanh_c * a.o * (1 - a.o)};
}

}  // namespace fusedlstm
