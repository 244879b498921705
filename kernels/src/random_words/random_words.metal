// `random_words`: a word a thread, 4 bytes written for each; a simdgroup writes a whole line. Bound by
// memory, and run once when weights are made.

static inline uint random_words_mixed(uint word) {
  word = (word ^ (word >> 16)) * 0x7feb352du;
  word = (word ^ (word >> 15)) * 0x846ca68bu;
  return word ^ (word >> 16);
}

kernel void random_words(device uint* out [[buffer(0)]],
                         constant uint& low [[buffer(1)]],
                         constant uint& high [[buffer(2)]],
                         constant uint& len [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]],
                         uint threads [[threads_per_threadgroup]]) {
  const uint at = group.x * threads + index;
  if (at < len) out[at] = random_words_mixed(random_words_mixed(at + low) ^ high);
}
