// As much of the Metal Shading Language as the kernels use, for a C++17 compiler. Grown when a
// kernel needs more. Vectors have no swizzles here: kernels do without.
#pragma once

#include "emulator.h"

// Found and taken out again by build.rs.
#define kernel SCONCE_KERNEL
#define threadgroup SCONCE_SHARED
#define device
#define constant const
#define thread

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
using half = emulator::F16;
using bfloat = emulator::Bf16;

namespace metal {

using std::isfinite;
using std::isnan;

template <class T, unsigned N> struct alignas(sizeof(T) * N) Vector;
template <class T> struct alignas(sizeof(T) * 2) Vector<T, 2> {
  T x, y;
  Vector() = default;
  Vector(T all) : x(all), y(all) {}
  Vector(T x, T y) : x(x), y(y) {}
  template <class U> explicit Vector(const Vector<U, 2>& v) : x(T(v.x)), y(T(v.y)) {}
  T& operator[](unsigned i) { return (&x)[i]; }
  T operator[](unsigned i) const { return (&x)[i]; }
};
template <class T> struct alignas(sizeof(T) * 4) Vector<T, 4> {
  T x, y, z, w;
  Vector() = default;
  Vector(T all) : x(all), y(all), z(all), w(all) {}
  Vector(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
  template <class U>
  explicit Vector(const Vector<U, 4>& v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
  T& operator[](unsigned i) { return (&x)[i]; }
  T operator[](unsigned i) const { return (&x)[i]; }
};
#define EMULATED_OPERATOR(OP)                                                          \
  template <class T, unsigned N>                                                       \
  Vector<T, N> operator OP(const Vector<T, N>& a, const Vector<T, N>& b) {             \
    Vector<T, N> out;                                                                  \
    for (unsigned i = 0; i < N; ++i) out[i] = a[i] OP b[i];                            \
    return out;                                                                        \
  }                                                                                    \
  template <class T, unsigned N, class S, class = std::enable_if_t<std::is_arithmetic<S>::value>> \
  Vector<T, N> operator OP(const Vector<T, N>& a, S b) {                               \
    return a OP Vector<T, N>(T(b));                                                    \
  }                                                                                    \
  template <class T, unsigned N, class S, class = std::enable_if_t<std::is_arithmetic<S>::value>> \
  Vector<T, N> operator OP(S a, const Vector<T, N>& b) {                               \
    return Vector<T, N>(T(a)) OP b;                                                    \
  }                                                                                    \
  template <class T, unsigned N, class S>                                              \
  Vector<T, N>& operator OP##=(Vector<T, N>& a, const S& b) {                          \
    return a = a OP b;                                                                 \
  }
EMULATED_OPERATOR(+)
EMULATED_OPERATOR(-)
EMULATED_OPERATOR(*)
EMULATED_OPERATOR(/)
#undef EMULATED_OPERATOR
template <class T, unsigned N> Vector<T, N> operator-(const Vector<T, N>& a) {
  Vector<T, N> out;
  for (unsigned i = 0; i < N; ++i) out[i] = -a[i];
  return out;
}

#define EMULATED_VECTORS(T)  \
  using T##2 = Vector<T, 2>; \
  using T##4 = Vector<T, 4>;
EMULATED_VECTORS(float)
EMULATED_VECTORS(half)
EMULATED_VECTORS(bfloat)
EMULATED_VECTORS(int)
EMULATED_VECTORS(uint)
EMULATED_VECTORS(ushort)
EMULATED_VECTORS(uchar)
EMULATED_VECTORS(char)
#undef EMULATED_VECTORS
struct uint3 { uint x, y, z; };

template <class T, unsigned N> T dot(const Vector<T, N>& a, const Vector<T, N>& b) {
  T sum = a[0] * b[0];
  for (unsigned i = 1; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

template <class To, class From> To as_type(const From& from) {
  return emulator::bit_cast<To>(from);
}

// Arithmetic. `fast` forms are as exact as the others here.
#define EMULATED_FUNCTIONS                                                          \
  inline float exp(float x) { return std::exp(x); }                                 \
  inline float exp2(float x) { return std::exp2(x); }                               \
  inline float log(float x) { return std::log(x); }                                 \
  inline float tanh(float x) { return std::tanh(x); }                               \
  inline float sqrt(float x) { return std::sqrt(x); }                               \
  inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }                       \
  inline float divide(float x, float y) { return x / y; }                           \
  inline float sin(float x) { return std::sin(x); }                                 \
  inline float cos(float x) { return std::cos(x); }
EMULATED_FUNCTIONS
namespace fast { EMULATED_FUNCTIONS }
namespace precise { EMULATED_FUNCTIONS }
#undef EMULATED_FUNCTIONS
inline float fma(float x, float y, float z) { return std::fma(x, y, z); }
template <class T, unsigned N>
Vector<T, N> fma(const Vector<T, N>& x, const Vector<T, N>& y, const Vector<T, N>& z) {
  Vector<T, N> out;
  for (unsigned i = 0; i < N; ++i) out[i] = fma(x[i], y[i], z[i]);
  return out;
}
inline float fabs(float x) { return std::fabs(x); }
inline float abs(float x) { return std::fabs(x); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline float rint(float x) { return std::nearbyint(x); }
inline float floor(float x) { return std::floor(x); }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
template <class T> T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T> T select(T no, T yes, bool which) { return which ? yes : no; }
inline uint popcount(uint bits) { return uint(__builtin_popcount(bits)); }
inline uint ctz(uint bits) { return bits == 0 ? 32u : uint(__builtin_ctz(bits)); }

// Threads that wait for one another.
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline void threadgroup_barrier(mem_flags) { sconce_barrier(); }
inline void simdgroup_barrier(mem_flags) { emulator::exchange("simdgroup_barrier", ~0u, 0); }

namespace emulated {
template <class T> T lane_value(const char* operation, T value, uint source) {
  const emulator::Values<T> values = emulator::exchange(operation, ~0u, value);
  if (!values.has(source)) sconce_fail("a shuffle reads from a thread that takes no part in it");
  return values[source];
}
template <class T, class Fold> T fold(const char* operation, T value, Fold fold) {
  const emulator::Values<T> values = emulator::exchange(operation, ~0u, value);
  bool first = true;
  T total = value;
  for (uint lane = 0; lane < emulator::WARP; ++lane) {
    if (!values.has(lane)) continue;
    total = first ? values[lane] : fold(total, values[lane]);
    first = false;
  }
  return total;
}
}  // namespace emulated

template <class T> T simd_sum(T value) {
  return emulated::fold("simd_sum", value, [](T a, T b) { return T(a + b); });
}
template <class T> T simd_max(T value) {
  return emulated::fold("simd_max", value, [](T a, T b) { return max(a, b); });
}
template <class T> T simd_min(T value) {
  return emulated::fold("simd_min", value, [](T a, T b) { return min(a, b); });
}
inline bool simd_any(bool value) {
  return emulated::fold("simd_any", int(value), [](int a, int b) { return a | b; });
}
inline bool simd_all(bool value) {
  return emulated::fold("simd_all", int(value), [](int a, int b) { return a & b; });
}
template <class T> T simd_shuffle(T value, ushort source) {
  return emulated::lane_value("simd_shuffle", value, source);
}
template <class T> T simd_broadcast(T value, ushort source) {
  return emulated::lane_value("simd_broadcast", value, source);
}
template <class T> T simd_shuffle_xor(T value, ushort bits) {
  return emulated::lane_value("simd_shuffle_xor", value, emulator::lane() ^ bits);
}
// Lanes beyond the end keep undefined values in Metal: their own here, which differs from a sum's.
template <class T> T simd_shuffle_down(T value, ushort by) {
  const uint source = emulator::lane() + by;
  const bool inside = source < emulator::WARP;
  return emulated::lane_value("simd_shuffle_down", value, inside ? source : emulator::lane());
}
template <class T> T simd_shuffle_up(T value, ushort by) {
  const bool inside = emulator::lane() >= by;
  return emulated::lane_value("simd_shuffle_up", value, emulator::lane() - (inside ? by : 0));
}
template <class T> T simd_prefix_exclusive_sum(T value) {
  const auto values = emulator::exchange("simd_prefix_exclusive_sum", ~0u, value);
  T sum = T(0);
  for (uint lane = 0; lane < emulator::lane(); ++lane)
    if (values.has(lane)) sum += values[lane];
  return sum;
}

// Matrices of a simdgroup: two elements in each thread. Which ones is not said by Apple; kernels
// must not ask.
template <class T, unsigned ROWS, unsigned COLUMNS> struct simdgroup_matrix {
  T elements[2];
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T all) : elements{all, all} {}
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;
template <class T, unsigned R, unsigned C> simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T all) {
  return simdgroup_matrix<T, R, C>(all);
}
namespace emulated {
inline uint row(uint i) { return (emulator::lane() * 2 + i) / 8; }
inline uint column(uint i) { return (emulator::lane() * 2 + i) % 8; }
}  // namespace emulated
template <class T, class U>
void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const U* source, ulong stride,
                    ulong = 0, bool transposed = false) {
  emulator::exchange("simdgroup_load", ~0u, 0);
  for (uint i = 0; i < 2; ++i) {
    const uint row = emulated::row(i), column = emulated::column(i);
    d.elements[i] = T(transposed ? source[column * stride + row] : source[row * stride + column]);
  }
}
template <class T, class U>
void simdgroup_store(const simdgroup_matrix<T, 8, 8>& a, U* target, ulong stride) {
  for (uint i = 0; i < 2; ++i)
    target[emulated::row(i) * stride + emulated::column(i)] = U(a.elements[i]);
  emulator::exchange("simdgroup_store", ~0u, 0);
}
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                   const simdgroup_matrix<B, 8, 8>& b,
                                   const simdgroup_matrix<C, 8, 8>& c) {
  struct Operands { A a[2]; B b[2]; } mine;
  for (uint i = 0; i < 2; ++i) { mine.a[i] = a.elements[i]; mine.b[i] = b.elements[i]; }
  const auto all = emulator::exchange("simdgroup_multiply_accumulate", ~0u, mine);
  for (uint i = 0; i < 2; ++i) {
    const uint row = emulated::row(i), column = emulated::column(i);
    float sum = float(c.elements[i]);
    for (uint k = 0; k < 8; ++k)
      sum += float(all[(row * 8 + k) / 2].a[k % 2]) *
             float(all[(k * 8 + column) / 2].b[column % 2]);
    d.elements[i] = D(sum);
  }
}
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                        const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D, 8, 8>(D(0)));
}

// Atomics: threads run in turns.
enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T value; };
using atomic_uint = atomic<uint>;
using atomic_int = atomic<int>;
template <class T> T atomic_fetch_add_explicit(atomic<T>* address, T value, memory_order) {
  return std::exchange(address->value, T(address->value + value));
}
template <class T> T atomic_fetch_min_explicit(atomic<T>* address, T value, memory_order) {
  return std::exchange(address->value, min(address->value, value));
}
template <class T> T atomic_fetch_or_explicit(atomic<T>* address, T value, memory_order) {
  return std::exchange(address->value, T(address->value | value));
}
template <class T> T atomic_load_explicit(const atomic<T>* address, memory_order) {
  return address->value;
}
template <class T> void atomic_store_explicit(atomic<T>* address, T value, memory_order) {
  address->value = value;
}

}  // namespace metal

// What the generated calls of kernels pass for parameters with these attributes.
namespace emulated_parameters {
using emulator::block_count;
using emulator::block_index;
inline metal::uint3 threadgroup_position_in_grid() {
  return {block_index(0), block_index(1), block_index(2)};
}
inline metal::uint3 threadgroups_per_grid() {
  return {block_count(0), block_count(1), block_count(2)};
}
inline uint thread_position_in_threadgroup() { return emulator::thread_index(); }
inline uint thread_index_in_threadgroup() { return emulator::thread_index(); }
inline uint threads_per_threadgroup() { return emulator::block_threads(); }
inline uint thread_index_in_simdgroup() { return emulator::lane(); }
inline uint simdgroup_index_in_threadgroup() { return emulator::warp(); }
inline uint simdgroups_per_threadgroup() { return emulator::block_threads() / emulator::WARP; }
inline uint thread_position_in_grid() {
  return block_index(0) * emulator::block_threads() + emulator::thread_index();
}
}  // namespace emulated_parameters
