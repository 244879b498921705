// `top_logits`: a threadgroup for each slice of 4096 logits of a row, which threads keep in registers
// and give up one by one, the largest of the threadgroup first; then a threadgroup for each row does
// the same with what the slices gave. 4 bytes are read for each logit, once. A row whose token is drawn
// greedily takes one round of each: an argmax.

constant constexpr uint TOP_THREADS = 256;
constant constexpr uint TOP_EACH = 16;
constant constexpr uint TOP_NONE = 0xffffffffu;

// A number whose order is that of logits: NaN largest, then from the largest to the least, where both
// zeros are one; never 0.
inline uint top_order(float value) {
  const uint stored = as_type<uint>(value);
  const uint bits = stored == 0x80000000u ? 0u : stored;
  // By bits, as fast math may take it that there is no NaN.
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
  return (bits >> 31) != 0 ? ~bits : (bits | 0x80000000u);
}

// The number that an order was made of.
inline float top_value(uint order) {
  return as_type<float>((order >> 31) != 0 ? (order & 0x7fffffffu) : ~order);
}

// The logits of a threadgroup, taken out in order. An order of zero is no logit.
struct TopHeld {
  float values[TOP_EACH];
  uint ids[TOP_EACH];
  uint order;
  uint id;

  void look() {
    order = 0;
    id = TOP_NONE;
    for (uint i = 0; i < TOP_EACH; ++i) {
      if (ids[i] == TOP_NONE) continue;
      const uint candidate = top_order(values[i]);
      if (candidate > order || (candidate == order && ids[i] < id)) {
        order = candidate;
        id = ids[i];
      }
    }
  }
};

struct TopTaken {
  uint order;
  uint id;
};

// The largest of the threadgroup, which is gone afterwards; the arrays have one for each simdgroup.
inline TopTaken top_take(thread TopHeld& held, threadgroup uint* orders, threadgroup uint* ids,
                         uint index) {
  TopTaken taken;
  taken.order = simd_max(held.order);
  taken.id = simd_min(held.order == taken.order ? held.id : TOP_NONE);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (index % SIMD == 0) {
    orders[index / SIMD] = taken.order;
    ids[index / SIMD] = taken.id;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  taken.order = orders[0];
  taken.id = ids[0];
  for (uint group = 1; group < TOP_THREADS / SIMD; ++group) {
    const uint order = orders[group], id = ids[group];
    if (order > taken.order || (order == taken.order && id < taken.id)) {
      taken.order = order;
      taken.id = id;
    }
  }
  if (taken.order != 0 && held.order == taken.order && held.id == taken.id) {
    for (uint i = 0; i < TOP_EACH; ++i)
      if (held.ids[i] == taken.id) held.ids[i] = TOP_NONE;
    held.look();
  }
  return taken;
}

// What is looked for in a row.
struct TopWanted {
  uint count;
  float temperature;
};

inline TopWanted top_wanted(device const uint* wanted, uint row) {
  TopWanted sought;
  sought.count = wanted[2 * row];
  const float temperature = as_type<float>(wanted[2 * row + 1]);
  sought.temperature = temperature > 0.0f ? temperature : 1.0f;
  return sought;
}

// parts[row, slice]: room for `top` values and `top` ids, of which as many are written as are wanted;
// the sums of exp(logit - largest of the slice) and of the same by temperature, and how many threads have
// seen a logit that is not finite.
[[max_total_threads_per_threadgroup(256)]]
kernel void top_logits_parts(device float* parts [[buffer(0)]],
                             device const float* logits [[buffer(1)]],
                             device const uint* wanted [[buffer(2)]],
                             constant uint& vocab [[buffer(3)]],
                             constant uint& top [[buffer(4)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint3 groups [[threadgroups_per_grid]],
                             uint index [[thread_index_in_threadgroup]]) {
  threadgroup uint orders[TOP_THREADS / SIMD];
  threadgroup uint ids[TOP_THREADS / SIMD];
  threadgroup float partial[SIMD];
  const TopWanted sought = top_wanted(wanted, group.y);
  const uint slice = group.x, row = group.y, first = slice * TOP_THREADS * TOP_EACH;
  logits += ulong(row) * vocab;
  parts += (ulong(row) * groups.x + slice) * (2 * top + 3);
  TopHeld held;
  float infinite = 0.0f;
  for (uint i = 0; i < TOP_EACH; ++i) {
    const uint id = first + i * TOP_THREADS + index;
    const bool inside = id < vocab;
    held.values[i] = inside ? logits[id] : 0.0f;
    held.ids[i] = inside ? id : TOP_NONE;
    if ((as_type<uint>(held.values[i]) & 0x7f800000u) == 0x7f800000u) infinite = 1.0f;
  }
  held.look();
  // The largest number, which sums need before anything is taken out.
  float largest = -FLT_MAX;
  for (uint i = 0; i < TOP_EACH; ++i)
    if (held.ids[i] != TOP_NONE) largest = max(largest, held.values[i]);
  largest = simd_max(largest);
  if (index % SIMD == 0) partial[index / SIMD] = largest;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  largest = simd_max(index % SIMD < TOP_THREADS / SIMD ? partial[index % SIMD] : -FLT_MAX);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float plain = 0.0f, tempered = 0.0f;
  for (uint i = 0; i < TOP_EACH; ++i) {
    if (held.ids[i] == TOP_NONE) continue;
    plain += precise::exp(held.values[i] - largest);
    tempered += precise::exp((held.values[i] - largest) / sought.temperature);
  }
  plain = threadgroup_sum(plain, partial, index, TOP_THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  tempered = threadgroup_sum(tempered, partial, index, TOP_THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  infinite = threadgroup_sum(infinite, partial, index, TOP_THREADS);
  for (uint rank = 0; rank < sought.count; ++rank) {
    const TopTaken taken = top_take(held, orders, ids, index);
    if (index == 0) {
      parts[rank] = taken.order != 0 ? top_value(taken.order) : 0.0f;
      parts[top + rank] = as_type<float>(taken.id);
    }
  }
  if (index == 0) {
    parts[2 * top] = plain;
    parts[2 * top + 1] = tempered;
    parts[2 * top + 2] = infinite;
  }
}

[[max_total_threads_per_threadgroup(256)]]
kernel void top_logits_merge(device float* values [[buffer(0)]],
                             device uint* ids [[buffer(1)]],
                             device float* sums [[buffer(2)]],
                             device const float* parts [[buffer(3)]],
                             device const uint* wanted [[buffer(4)]],
                             constant uint& slices [[buffer(5)]],
                             constant uint& top [[buffer(6)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint index [[thread_index_in_threadgroup]]) {
  threadgroup uint orders[TOP_THREADS / SIMD];
  threadgroup uint owners[TOP_THREADS / SIMD];
  threadgroup float partial[SIMD];
  const TopWanted sought = top_wanted(wanted, group.x);
  const uint row = group.x, stride = 2 * top + 3;
  parts += ulong(row) * slices * stride;
  TopHeld held;
  for (uint i = 0; i < TOP_EACH; ++i) {
    const uint candidate = i * TOP_THREADS + index;
    const bool inside = candidate < slices * sought.count;
    const uint slice = inside ? candidate / sought.count : 0, rank = candidate % sought.count;
    device const float* part = parts + ulong(slice) * stride;
    held.values[i] = inside ? part[rank] : 0.0f;
    held.ids[i] = inside ? as_type<uint>(part[top + rank]) : TOP_NONE;
  }
  held.look();
  float largest = 0.0f;
  for (uint rank = 0; rank < sought.count; ++rank) {
    const TopTaken taken = top_take(held, orders, owners, index);
    if (rank == 0) largest = top_value(taken.order);
    if (index == 0) {
      values[ulong(row) * top + rank] = top_value(taken.order);
      ids[ulong(row) * top + rank] = taken.id;
    }
  }
  float plain = 0.0f, tempered = 0.0f, infinite = 0.0f;
  for (uint slice = index; slice < slices; slice += TOP_THREADS) {
    device const float* part = parts + ulong(slice) * stride;
    plain += part[2 * top] * precise::exp(part[0] - largest);
    tempered += part[2 * top + 1] * precise::exp((part[0] - largest) / sought.temperature);
    infinite += part[2 * top + 2];
  }
  plain = threadgroup_sum(plain, partial, index, TOP_THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  tempered = threadgroup_sum(tempered, partial, index, TOP_THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  infinite = threadgroup_sum(infinite, partial, index, TOP_THREADS);
  if (index == 0) {
    const float none = as_type<float>(0x7fc00000u);
    sums[2 * row] = infinite > 0.0f ? none : plain;
    sums[2 * row + 1] = infinite > 0.0f ? none : tempered;
  }
}
