"""Mistakes that metal_spaces.py must find, and what it must let pass. Needs the package `libclang`."""

import pathlib
import tempfile
import unittest

import clang.cindex as cindex

import metal_spaces

RIGHT = """
constant constexpr uint COUNT = 4;
constant constexpr float TABLE[2] = {1.0f, 2.0f};
struct Pair {
  device const float* x;
  float4 sums[COUNT];
  void add(uint i) { sums[i % COUNT] += float4(x[i]) * TABLE[i % 2]; }
};
inline float narrowed(device const bfloat* x, uint i) { return float(x[i]) + float(half(0.5f)); }
inline float first(thread const Pair& pair) { return pair.sums[0].x; }
inline Pair pair_of(device const float* x) { Pair pair; pair.x = x; return pair; }
template <uint N> inline float body(Pair pair, threadgroup float* held, uint index) {
  thread float mine[N];
  for (uint i = 0; i < N; ++i) mine[i] = held[index] + narrowed((device const bfloat*)pair.x, i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(mine[0]) + as_type<float>(index) + first(pair_of(pair.x));
}
kernel void right(device float* out [[buffer(0)]], device const float* x [[buffer(1)]],
                  constant float& eps [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                  uint index [[thread_index_in_threadgroup]]) {
  threadgroup float held[SIMD];
  held[index % SIMD] = eps;
  Pair pair = pair_of(x + ulong(group.x) * SIMD);
  pair.add(index);
  out[index] = body<COUNT>(pair, held, index);
  const float4 four = *reinterpret_cast<device const float4*>(x);
  out[0] = four.w;
}
"""

WRONG = {
    "no matching function for call to 'threadgroup_sum'":
        "kernel void f(device float* out) { out[0] = threadgroup_sum(1.0f, out, 0, 32); }",
    "x names no address space":
        "inline float f(float* x) { return *x; }",
    "pair names no address space":
        "struct P { float x; }; inline void f(P& pair) { pair.x = 1; }",
    "p names no address space":
        "inline void f() { float x = 1; float* p = &x; *p = 2; }",
    "names no address space: const __generic float4 *":
        "inline float f(device const float* x) { return ((const float4*)x)->y; }",
    "program scope variable must reside in constant address space":
        "constexpr uint Z = 3;",
    "non-kernel function variable cannot be declared in local address space":
        "inline void f() { threadgroup float y[3]; y[0] = 1; }",
    "cannot initialize a variable of type '__local float *":
        "kernel void f(device float* out) { threadgroup float* p = out; *p = 1; }",
    "converts between mismatching address spaces":
        "constant float T[1] = {1}; kernel void f() { *(device float*)T = 1; }",
    "pointer arguments to kernel functions must reside in":
        "kernel void f(float* out) { *out = 1; }",
    "read-only variable is not assignable":
        "kernel void f(device const float* x) { x[0] = 1; }",
    "no matching function for call to 'simdgroup_load'":
        "inline void f(thread const float* x) { simdgroup_float8x8 m; simdgroup_load(m, x); }",
}


def found(text):
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source.metal"
        source.write_text(text)
        return list(metal_spaces.check(cindex.Index.create(), source))


class Spaces(unittest.TestCase):
    def test_what_is_right_passes(self):
        self.assertEqual(found(RIGHT), [])

    def test_mistakes_are_found(self):
        for said, text in WRONG.items():
            with self.subTest(text):
                self.assertIn(said, "\n".join(found(text)))


if __name__ == "__main__":
    unittest.main()
