"""What a figure depends on: the machine, the versions, and how quiet it was meanwhile."""

from __future__ import annotations

import datetime
import os
import platform
import ssl
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from control.bench.processes import ROOT
from control.nodes import Place

LIBRARIES = ("aioquic", "qh3", "cryptography", "cffi")
CPU_FLAGS = ("aes", "vaes", "vpclmulqdq", "avx2", "avx512f")  # What decides how fast AES-GCM is.


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def version(name: str) -> str | None:
    """Of an installed package; None when it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The project's commit, with `-dirty` when files differ; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Ticks of /proc/stat, all processors: in all, and taken by the hypervisor for others."""

    total: int
    stolen: int

    @classmethod
    def now(cls) -> CpuTimes:
        """As they are."""
        first = (_text("/proc/stat") or "").split("\n", 1)[0].split()
        values = [int(value) for value in first[1:9]]
        return cls(sum(values), values[7] if len(values) > 7 else 0)

    def stolen_since(self, before: CpuTimes) -> float:
        """Share of processor time stolen since then, 0 to 1."""
        total = self.total - before.total
        return round((self.stolen - before.stolen) / total, 4) if total > 0 else 0.0


def environment(client: Place, server: Place, mtu: int) -> dict[str, Any]:
    """Before the first trial; `finish` adds the end's load."""
    cores = {place.core for place in (client, server) if place.core >= 0}
    governors = {_text(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor") for core in cores}
    link = "veth between two network namespaces" if client.namespace else "loopback ::1, no namespaces"
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "kernel": platform.release(),
        **_cpu(),
        "cpus": os.cpu_count(),
        "cores": {"client": client.core, "server": server.core},
        "governor": ", ".join(sorted(text for text in governors if text)) or None,
        "loadavg": list(os.getloadavg()),
        "link": link,
        "mtu": mtu,
        "python": platform.python_version(),
        "openssl_of_python": ssl.OPENSSL_VERSION,
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def finish(described: dict[str, Any], before: CpuTimes) -> None:
    """Add what the machine was like to the end."""
    described["loadavg_end"] = list(os.getloadavg())
    described["cpu_stolen"] = CpuTimes.now().stolen_since(before)
