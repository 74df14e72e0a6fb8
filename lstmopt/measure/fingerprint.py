"""What machine a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

ISA_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vbmi",
    "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve",
)  # fmt: skip


class Fingerprint(BaseModel):
    """A machine, as far as latency depends on it.

    Attributes:
        cpu: the model's name, with family and model number since cloud machines hide the name.
        isa: instruction sets that matter here.
        caches: bytes of each cache of one core, such as ``{"L1d": 32768}``.
        cores: cores that this process may use.
        memory_gib: main memory.
        system: operating system and machine type.
        gpu: the first NVIDIA GPU and the CUDA version of its driver; "" where there is none.
    """

    model_config = ConfigDict(frozen=True)

    cpu: str
    isa: tuple[str, ...]
    caches: dict[str, int]
    cores: int
    memory_gib: float
    system: str
    gpu: str = ""

    def difference(self, other: Fingerprint) -> tuple[str, ...]:
        """Returns the fields in which two machines differ and that latency depends on."""
        return tuple(
            name
            for name in ("cpu", "isa", "caches", "cores", "gpu")
            if getattr(self, name) != getattr(other, name)
        )


@cache
def fingerprint() -> Fingerprint:
    """Returns this machine's fingerprint."""
    import psutil

    from lstmopt.runtimes import cuda

    card = cuda.gpu()
    entries = _cpuinfo()
    name = entries.get("model name", platform.processor() or platform.machine())
    numbers = [
        f"{key.removeprefix('cpu ')} {entries[key]}" for key in ("cpu family", "model") if key in entries
    ]
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    return Fingerprint(
        cpu=f"{name} ({', '.join(numbers)})" if numbers else name,
        isa=tuple(flag for flag in ISA_FLAGS if flag in flags),
        caches=_caches(),
        cores=len(available_cores()),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        gpu="" if card is None else f"{card.name}, CUDA {card.driver}",
    )


def available_cores() -> tuple[int, ...]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _cpuinfo() -> dict[str, str]:
    """Returns the first processor's entries of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    first = text.split("\n\n")[0]
    return {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
    }


def _caches() -> dict[str, int]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KM]?)", size)
        if match:
            suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
            found[f"L{level}{suffix}"] = int(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]]
    return found
