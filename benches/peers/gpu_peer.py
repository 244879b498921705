"""The peers of `gpu_bars`, one round at a time: a line on the standard input names work, and its answer
is the seconds that it takes, or why it cannot be done. Only PyTorch, Triton and flash-linear-attention
are used, where they are.

    delta TOKENS KEY_HEADS VALUE_HEADS DIM    the chunked gated delta rule of flash-linear-attention
    matmul SIZE                               a product of square bf16 matrices of PyTorch
"""

import sys

RUNS = 5
# Cycles that the device spins meanwhile, some 20 ms: calls of a few kernels take Python longer to start
# than the device to run, and its time is what ours is held against.
AHEAD_CYCLES = 40_000_000


def seconds(torch, work):
    """Seconds of a call, by events of the device around several, all queued before the first begins."""
    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    for _ in range(RUNS):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / RUNS


def delta(torch, tokens, key_heads, value_heads, dim):
    """The rule from bf16 to bf16, with queries and keys normalized in the kernel as ours are."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    def random(heads):
        return torch.randn(1, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)

    query, key, value = random(key_heads), random(key_heads), random(value_heads)
    gate = torch.randn(1, tokens, value_heads, device="cuda")
    decay = -0.5 * torch.nn.functional.softplus(gate)
    beta = torch.rand(1, tokens, value_heads, device="cuda", dtype=torch.bfloat16)

    def rule(query, key):
        return chunk_gated_delta_rule(
            query,
            key,
            value,
            g=decay,
            beta=beta,
            initial_state=None,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )

    with torch.no_grad():
        try:
            rule(query, key)
        except Exception:
            # Releases that want a key head for each value head.
            repeats = value_heads // key_heads
            query = query.repeat_interleave(repeats, dim=2)
            key = key.repeat_interleave(repeats, dim=2)
            rule(query, key)
        return lambda: rule(query, key)


def matmul(torch, size):
    """What cuBLAS chooses."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty(size, size, device="cuda", dtype=torch.bfloat16)
    return lambda: torch.mm(a, b, out=out)


WORK = {"delta": delta, "matmul": matmul}


def answer(line, made):
    """Seconds, or a reason in one line. What was made for a line is kept for the next one like it."""
    name, *sizes = line.split()
    try:
        import torch

        if not torch.cuda.is_available():
            return "PyTorch finds no GPU"
        if line not in made:
            made.clear()
            made[line] = WORK[name](torch, *map(int, sizes))
        with torch.no_grad():
            return f"{seconds(torch, made[line]):.9f}"
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]


def main():
    # What libraries print must not stand among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    made = {}
    for line in sys.stdin:
        print(answer(line.strip(), made), file=answers, flush=True)


if __name__ == "__main__":
    main()
