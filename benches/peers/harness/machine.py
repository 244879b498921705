"""The machine in words."""
import os
import platform
from pathlib import Path

# Instruction sets that quantized kernels are written for.
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
GIBIBYTE = 1 << 30


def fields(path):
    """The `name: value` lines of a file of /proc; of names that come again, the last."""
    path = Path(path)
    if not path.exists():
        return {}
    pairs = (line.partition(":")[::2] for line in path.read_text().splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def machine():
    """Processor, cores, instruction sets that matter here, memory, kernel."""
    cpu = fields("/proc/cpuinfo")
    model = cpu.get("model name") or platform.processor() or platform.machine()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    isa = [flag for flag in ISA if flag in flags]
    virtual = ", a virtual machine" if "hypervisor" in flags else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIBIBYTE
    return (f"{model}, {os.cpu_count()} cores{virtual}, {' '.join(isa) or 'instruction sets not known'}, "
            f"{memory:.0f} GiB, {platform.system()} {platform.release().partition('-')[0]}")
