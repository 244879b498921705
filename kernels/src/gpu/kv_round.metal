// How keys and values are rounded to 8 bits, for the kernels that write them.

// What a code of zero is, and the largest code beside it.
constant constexpr int KV_ZERO_CODE = 128;
constant constexpr float KV_CODE_MAX = 127.0f;
// Below, all elements of a group count as zeros.
constant constexpr float KV_ZERO = 1e-30f;

// Rounds a group of at most 64 elements, of which a thread has two, 32 apart; the first one writes the
// scale.
inline void round_group(device uchar* codes, device uint* scale, float low, float high, uint len,
                        uint lane) {
  const float largest = simd_max(max(fabs(low), fabs(high)));
  const bool finite = simd_all(isfinite(low) && isfinite(high));
  const bool zeros = !finite || largest < KV_ZERO;
  const float inverse = zeros ? 0.0f : precise::divide(KV_CODE_MAX, largest);
  const int low_code = zeros ? 0 : int(rint(low * inverse));
  const int high_code = zeros ? 0 : int(rint(high * inverse));
  if (lane < len) codes[lane] = uchar(low_code + KV_ZERO_CODE);
  if (lane + SIMD < len) codes[lane + SIMD] = uchar(high_code + KV_ZERO_CODE);
  // The bits of the NaN that the CPU writes.
  const uint bits = zeros ? 0u : as_type<uint>(precise::divide(largest, KV_CODE_MAX));
  if (lane == 0) *scale = finite ? bits : 0x7fc00000u;
}
