// Vectors of one instruction set, in GCC/Clang vector extensions: the same source for every set.
// The including file sets FUSEDLSTM_VECTOR_BYTES. Everything here has internal linkage: code that was
// compiled for AVX-512 must never be picked by the linker for a processor that lacks it.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define FUSEDLSTM_UNROLL _Pragma("GCC unroll 16")
#define FUSEDLSTM_ALWAYS_INLINE inline __attribute__((always_inline))

namespace fusedlstm::cpu {
namespace {

constexpr int kVectorBytes = FUSEDLSTM_VECTOR_BYTES;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

// Half as wide: as many bfloat16 as a vector has floats.
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

template <class To, class From>
FUSEDLSTM_ALWAYS_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V>
FUSEDLSTM_ALWAYS_INLINE V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V>
FUSEDLSTM_ALWAYS_INLINE void store(void* p, const V& v) {
  std::memcpy(p, &v, sizeof(v));
}

template <class V, class T>
FUSEDLSTM_ALWAYS_INLINE V splat(T value) {
  return V{} + value;
}

// Lane i of the result is lane index[i] of a, or of b beyond a's last.
template <class V, class Index>
FUSEDLSTM_ALWAYS_INLINE V shuffle(const V& a, const V& b, const Index& index) {
#if defined(__clang__)
  constexpr int n = sizeof(V) / sizeof(a[0]);
  V result{};
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) result[i] = index[i] < n ? a[index[i]] : b[index[i] - n];
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// ---------------------------------------------------------------- storage types

// Elem: what memory holds; Acc: what is computed with; Unit: what the product reads at a time
// (two bfloat16 along K travel as one 32-bit unit, the form that the BF16 dot instruction wants);
// LeftUnit: what it reads of the left operand beside it.
struct F32 {
  using Elem = float;
  using Acc = float;
  using Unit = float;
  using LeftUnit = Unit;
  static constexpr int kPair = 1;
};
struct F64 {
  using Elem = double;
  using Acc = double;
  using Unit = double;
  using LeftUnit = Unit;
  static constexpr int kPair = 1;
};
struct BF16 {
  using Elem = uint16_t;
  using Acc = float;
  using Unit = uint32_t;
  using LeftUnit = Unit;
  static constexpr int kPair = 2;
};

template <class E>
using AccVector = Vector<typename E::Acc>;
template <class E>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(typename E::Acc));

FUSEDLSTM_ALWAYS_INLINE Vector<float> widen(HalfWords words) {
  return bit_cast<Vector<float>>(__builtin_convertvector(words, Vector<uint32_t>) << 16);
}

// Round to nearest even; a NaN stays a NaN.
FUSEDLSTM_ALWAYS_INLINE HalfWords narrow(Vector<float> v) {
  const auto bits = bit_cast<Vector<uint32_t>>(v);
  const auto rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const auto is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return __builtin_convertvector((is_nan ? (bits | 0x00400000) : rounded) >> 16, HalfWords);
}

template <class E>
FUSEDLSTM_ALWAYS_INLINE AccVector<E> load_elems(const typename E::Elem* p) {
  if constexpr (E::kPair == 2)
    return widen(load<HalfWords>(p));
  else
    return load<AccVector<E>>(p);
}

template <class E>
FUSEDLSTM_ALWAYS_INLINE void store_elems(typename E::Elem* p, AccVector<E> v) {
  if constexpr (E::kPair == 2)
    store(p, narrow(v));
  else
    store(p, v);
}

// The first n of a vector's lanes; the others read as zero and are not written.
template <class E>
FUSEDLSTM_ALWAYS_INLINE AccVector<E> load_elems(const typename E::Elem* p, int n) {
  if (n == kLanes<E>) [[likely]]
    return load_elems<E>(p);
  typename E::Elem lanes[kLanes<E>] = {};
  for (int j = 0; j < n; ++j) lanes[j] = p[j];
  return load_elems<E>(lanes);
}

template <class E>
FUSEDLSTM_ALWAYS_INLINE void store_elems(typename E::Elem* p, AccVector<E> v, int n) {
  if (n == kLanes<E>) [[likely]]
    return store_elems<E>(p, v);
  typename E::Elem lanes[kLanes<E>];
  store_elems<E>(lanes, v);
  for (int j = 0; j < n; ++j) p[j] = lanes[j];
}

// Memory of the accumulation type, for the same partial loads and stores.
template <class E>
using Wide = std::conditional_t<sizeof(typename E::Acc) == 4, F32, F64>;

template <class E>
FUSEDLSTM_ALWAYS_INLINE typename E::Acc to_acc(typename E::Elem e) {
  if constexpr (E::kPair == 2)
    return bit_cast<float>(static_cast<uint32_t>(e) << 16);
  else
    return e;
}

// ---------------------------------------------------------------- the dot step: acc += a * b

// A is one unit of the left operand for all lanes, B one vector of units of the right operand.
template <class E>
struct Dot {
  using B = AccVector<E>;
  using A = typename E::Acc;
  static FUSEDLSTM_ALWAYS_INLINE B read_b(const typename E::Unit* p) { return load<B>(p); }
  static FUSEDLSTM_ALWAYS_INLINE A read_a(const typename E::Unit* p) { return *p; }
  static FUSEDLSTM_ALWAYS_INLINE void step(AccVector<E>& acc, A a, B b) { acc += a * b; }
};

template <>
struct Dot<BF16> {
#if defined(__AVX512BF16__)
  using B = __m512bh;
  using A = __m512bh;
  static FUSEDLSTM_ALWAYS_INLINE B read_b(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static FUSEDLSTM_ALWAYS_INLINE A read_a(const uint32_t* p) {
    return (__m512bh)_mm512_set1_epi32(static_cast<int>(load<uint32_t>(p)));
  }
  static FUSEDLSTM_ALWAYS_INLINE void step(AccVector<BF16>& acc, A a, B b) {
    acc = (AccVector<BF16>)_mm512_dpbf16_ps((__m512)acc, a, b);
  }
#else
  struct B {
    Vector<float> even, odd;
  };
  struct A {
    float even, odd;
  };
  static FUSEDLSTM_ALWAYS_INLINE B read_b(const uint32_t* p) {
    const auto pair = load<Vector<uint32_t>>(p);
    return {bit_cast<Vector<float>>(pair << 16), bit_cast<Vector<float>>(pair & 0xffff0000u)};
  }
  static FUSEDLSTM_ALWAYS_INLINE A read_a(const uint32_t* p) {
    const auto pair = load<uint32_t>(p);
    return {bit_cast<float>(pair << 16), bit_cast<float>(pair & 0xffff0000u)};
  }
  static FUSEDLSTM_ALWAYS_INLINE void step(AccVector<BF16>& acc, A a, const B& b) {
    acc += a.even * b.even;
    acc += a.odd * b.odd;
  }
#endif
};

// ---------------------------------------------------------------- exponentials

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
  static constexpr float kLimit = 87.0f, kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct ExpConstants<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
  static constexpr double kLimit = 708.0, kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
};

constexpr double inverse_factorial(int n) {
  double product = 1;
  for (int k = 2; k <= n; ++k) product *= k;
  return 1 / product;
}

// exp(x) = 2^n * (1 + p), |x - n ln 2| <= ln(2)/2, p = expm1 of the rest by its Taylor series.
template <class T>
struct ScaledExp {
  Vector<T> scale, p;
};

template <class T>
FUSEDLSTM_ALWAYS_INLINE ScaledExp<T> scaled_exp(Vector<T> x) {
  using K = ExpConstants<T>;
  using Ints = Vector<typename K::Int>;
  // Written so that a NaN, which compares false, passes through.
  x = x > K::kLimit ? splat<Vector<T>>(K::kLimit) : x;
  x = x < -K::kLimit ? splat<Vector<T>>(-K::kLimit) : x;
  const Vector<T> rounded = x * static_cast<T>(1.4426950408889634074) + K::kRound;
  const Vector<T> n = rounded - K::kRound;
  const Vector<T> r = (x - n * K::kLn2High) - n * K::kLn2Low;
  auto series = splat<Vector<T>>(static_cast<T>(inverse_factorial(K::kDegree)));
#pragma GCC unroll 16
  for (int k = K::kDegree - 1; k >= 1; --k) series = series * r + static_cast<T>(inverse_factorial(k));
  const Ints exponent = bit_cast<Ints>(rounded) - bit_cast<typename K::Int>(K::kRound);
  return {bit_cast<Vector<T>>((exponent + K::kBias) << K::kMantissa), series * r};
}

template <class V>
using Lane = std::remove_cvref_t<decltype(V{}[0])>;

struct VectorMath {
  template <class V>
  static FUSEDLSTM_ALWAYS_INLINE V sigmoid(V x) {
    const auto e = scaled_exp<Lane<V>>(-x);
    return 1 / (1 + (e.scale * e.p + e.scale));
  }

  // From expm1, so that small x keep their relative accuracy.
  template <class V>
  static FUSEDLSTM_ALWAYS_INLINE V tanh(V x) {
    const V magnitude = x < 0 ? -x : x;
    const auto e = scaled_exp<Lane<V>>(-2 * magnitude);
    const V expm1 = e.scale * e.p + (e.scale - 1);
    const V t = -expm1 / (expm1 + 2);
    return x < 0 ? -t : t;
  }
};

}  // namespace
}  // namespace fusedlstm::cpu
