// `gate_mul`: four elements a thread, in loads and stores of 16 bytes. Bound by memory: 12 bytes
// move for each element, beside which exact exponentials and divisions cost no time.

// g / 2 * (1 + tanh(u)) = g / (1 + exp(-2 u)), which loses nothing where tanh nears -1, with
// u = sqrt(2 / pi) * (g + 0.044715 g^3).
inline float gate_mul_gelu(float gate) {
  const float cube = gate * gate * (gate * -0.044715f);
  return gate / (1.0f + precise::exp((cube - gate) * 1.5957691216f));
}

// Of all rows as one array of `len`, each threadgroup has four elements for each of its threads, of
// the first product or of the second.
#define GATE_MUL(NAME, ACTIVATION)                                                                \
  kernel void NAME(device float* out [[buffer(0)]],                                               \
                   device const float* gate [[buffer(1)]],                                        \
                   device const float* x [[buffer(2)]],                                           \
                   constant uint& len [[buffer(3)]],                                              \
                   constant uint& wide [[buffer(4)]],                                             \
                   device float* second_out [[buffer(5)]],                                        \
                   device const float* second_gate [[buffer(6)]],                                 \
                   device const float* second_x [[buffer(7)]],                                    \
                   constant uint& second_len [[buffer(8)]],                                       \
                   constant uint& second_wide [[buffer(9)]],                                      \
                   uint3 group [[threadgroup_position_in_grid]],                                  \
                   uint index [[thread_index_in_threadgroup]],                                    \
                   uint threads [[threads_per_threadgroup]]) {                                    \
    const uint of_group = threads * 4, groups = (len + of_group - 1) / of_group;                  \
    const bool second = group.x >= groups;                                                        \
    const ulong start = ulong(second ? group.x - groups : group.x) * of_group;                    \
    const uint rest = uint((second ? second_len : len) - start), first = index * 4;               \
    const bool fours = (second ? second_wide : wide) != 0;                                        \
    device const float* gates = (second ? second_gate : gate) + start;                            \
    device const float* factors = (second ? second_x : x) + start;                                \
    device float* to = (second ? second_out : out) + start;                                       \
    const float4 g = load_four(gates, first, rest, fours);                                        \
    const float4 four = load_four(factors, first, rest, fours);                                   \
    const float4 activated =                                                                      \
        float4(ACTIVATION(g.x), ACTIVATION(g.y), ACTIVATION(g.z), ACTIVATION(g.w));               \
    store_four(to, first, rest, fours, activated * four);                                         \
  }
GATE_MUL(gate_mul_silu, silu)
GATE_MUL(gate_mul_gelu_tanh, gate_mul_gelu)
GATE_MUL(gate_mul_sigmoid, sigmoid)
