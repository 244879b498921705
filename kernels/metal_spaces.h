// As much of the Metal Shading Language as the kernels use, declared for a compiler of C++ for OpenCL,
// which keeps address spaces apart as Metal does. Nothing here has a body: metal_spaces.py only asks
// whether sources are well formed. emulator/include/metal.h is the one that runs.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#define kernel __kernel
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __bf16 bfloat;

#define VECTORS(T)                                         \
  typedef T T##2 __attribute__((ext_vector_type(2)));      \
  typedef T T##3 __attribute__((ext_vector_type(3)));      \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(float)
VECTORS(half)
VECTORS(int)
VECTORS(uint)
VECTORS(ushort)
VECTORS(short)
VECTORS(uchar)
VECTORS(char)
VECTORS(ulong)
#undef VECTORS

// Vectors are made as by constructors: of one value, or of as many as they have elements.
template <class V, class A> V vector_of(A all);
template <class V, class A, class B> V vector_of(A x, B y);
template <class V, class A, class B, class C> V vector_of(A x, B y, C z);
template <class V, class A, class B, class C, class D> V vector_of(A x, B y, C z, D w);
#define float2(...) vector_of<float2>(__VA_ARGS__)
#define float3(...) vector_of<float3>(__VA_ARGS__)
#define float4(...) vector_of<float4>(__VA_ARGS__)
#define half2(...) vector_of<half2>(__VA_ARGS__)
#define half4(...) vector_of<half4>(__VA_ARGS__)
#define int2(...) vector_of<int2>(__VA_ARGS__)
#define int4(...) vector_of<int4>(__VA_ARGS__)
#define uint2(...) vector_of<uint2>(__VA_ARGS__)
#define uint3(...) vector_of<uint3>(__VA_ARGS__)
#define uint4(...) vector_of<uint4>(__VA_ARGS__)
#define ushort2(...) vector_of<ushort2>(__VA_ARGS__)
#define ushort4(...) vector_of<ushort4>(__VA_ARGS__)
#define uchar4(...) vector_of<uchar4>(__VA_ARGS__)
#define char4(...) vector_of<char4>(__VA_ARGS__)
#define ulong2(...) vector_of<ulong2>(__VA_ARGS__)

#define FLT_MAX 3.402823466e+38f
#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")

namespace metal {

template <class To, class From> To as_type(From from);

#define OF_FLOATS(NAME) float NAME(float); float2 NAME(float2); float4 NAME(float4);
#define FUNCTIONS                                                                          \
  OF_FLOATS(exp) OF_FLOATS(exp2) OF_FLOATS(log) OF_FLOATS(log2) OF_FLOATS(tanh)            \
  OF_FLOATS(sqrt) OF_FLOATS(rsqrt) OF_FLOATS(sin) OF_FLOATS(cos)                           \
  float divide(float x, float y);                                                          \
  float pow(float x, float y);
FUNCTIONS
namespace fast { FUNCTIONS }
namespace precise { FUNCTIONS }
OF_FLOATS(fabs)
OF_FLOATS(rint)
OF_FLOATS(floor)
OF_FLOATS(ceil)
OF_FLOATS(trunc)
OF_FLOATS(sign)
#undef FUNCTIONS
#undef OF_FLOATS
float fma(float x, float y, float z);
float4 fma(float4 x, float4 y, float4 z);
float dot(float2 x, float2 y);
float dot(float4 x, float4 y);
float ldexp(float x, int exponent);
bool isfinite(float x);
bool isnan(float x);
bool isinf(float x);
template <class T> T abs(T x);
template <class T> T min(T x, T y);
template <class T> T max(T x, T y);
template <class T> T clamp(T x, T low, T high);
template <class T> T select(T no, T yes, bool which);
template <class T> T popcount(T bits);
template <class T> T ctz(T bits);
template <class T> T clz(T bits);

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

template <class T> T simd_sum(T value);
template <class T> T simd_max(T value);
template <class T> T simd_min(T value);
template <class T> T simd_and(T value);
template <class T> T simd_or(T value);
bool simd_any(bool value);
bool simd_all(bool value);
template <class T> T simd_shuffle(T value, ushort lane);
template <class T> T simd_broadcast(T value, ushort lane);
template <class T> T simd_shuffle_xor(T value, ushort bits);
template <class T> T simd_shuffle_down(T value, ushort by);
template <class T> T simd_shuffle_up(T value, ushort by);
template <class T> T simd_prefix_exclusive_sum(T value);
template <class T> T simd_prefix_inclusive_sum(T value);

template <class T, int COLUMNS, int ROWS> struct simdgroup_matrix {
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T all);
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
#define LOAD_AND_STORE(SPACE)                                                              \
  template <class T>                                                                       \
  void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& to, SPACE const T* from,           \
                      ulong stride = 8, ulong2 origin = 0, bool transposed = false);       \
  template <class T>                                                                       \
  void simdgroup_store(simdgroup_matrix<T, 8, 8> from, SPACE T* to, ulong stride = 8,      \
                       ulong2 origin = 0, bool transposed = false);
LOAD_AND_STORE(device)
LOAD_AND_STORE(threadgroup)
#undef LOAD_AND_STORE
template <class T, int M, int N> simdgroup_matrix<T, M, N> make_filled_simdgroup_matrix(T all);
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& to,
                                   simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b,
                                   simdgroup_matrix<C, 8, 8> c);
template <class D, class A, class B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& to, simdgroup_matrix<A, 8, 8> a,
                        simdgroup_matrix<B, 8, 8> b);

enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T value; };
typedef atomic<uint> atomic_of_uint;
typedef atomic<int> atomic_of_int;
// OpenCL has types of these names.
#define atomic_uint atomic_of_uint
#define atomic_int atomic_of_int
#define EXCHANGE(NAME, SPACE) \
  template <class T> T atomic_##NAME##_explicit(SPACE atomic<T>* at, T value, memory_order);
#define ATOMICS(SPACE)                                                                   \
  EXCHANGE(exchange, SPACE) EXCHANGE(fetch_add, SPACE) EXCHANGE(fetch_and, SPACE)        \
  EXCHANGE(fetch_max, SPACE) EXCHANGE(fetch_min, SPACE) EXCHANGE(fetch_or, SPACE)        \
  template <class T> T atomic_load_explicit(SPACE const atomic<T>* at, memory_order);    \
  template <class T> void atomic_store_explicit(SPACE atomic<T>* at, T value, memory_order);
ATOMICS(device)
ATOMICS(threadgroup)
#undef ATOMICS
#undef EXCHANGE

}  // namespace metal
