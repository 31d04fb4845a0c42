"""cffi build script (API mode): compiles ``dataplane._stoq`` from ``csrc/stoq.h``.

Two ways to the same module:

- ``make`` builds ``build/libstoq.a`` once, for the C tests, the fuzzers and this extension, and names it in
  the environment variable ``STOQ_LIBRARY``;
- ``pip install .`` has no Makefile: the C files are then compiled here, with the same flags, and so is the
  XDP program, whose skeleton the loader (``csrc/guard``) includes.

Debian packages needed: gcc pkg-config python3-dev liburing-dev libssl-dev libbpf-dev clang-16 bpftool, and
libipsec-mb-dev where there is one (amd64).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FOLDERS = ("crypto", "quic", "io", "worker", "guard", "sim")
IPSEC_MB_HEADERS = ("/usr/include/intel-ipsec-mb.h", "/usr/local/include/intel-ipsec-mb.h")

# Debug symbols and frame pointers cost under 1 % and make `perf` and crash reports readable.
FLAGS = ["-std=gnu11", "-O3", "-g", "-fno-omit-frame-pointer"]


def has_ipsec_mb() -> bool:
    """Is Intel IPsec-MB's header there? (libipsec-mb-dev ships no pkg-config file.)"""
    return platform.machine() == "x86_64" and any(Path(path).exists() for path in IPSEC_MB_HEADERS)


def tool(*names: str) -> str:
    """Path of the first of these commands that is there; Debian keeps bpftool where users do not look."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return found
    sys.exit(f"{' or '.join(names)} is missing: install the Debian packages clang-16 and bpftool")


def build_skeletons() -> None:
    """Compile the BPF programs into ``build/bpf/*.skel.h``, as the Makefile does (which says why so)."""
    folder = ROOT / "build" / "bpf"
    folder.mkdir(parents=True, exist_ok=True)
    headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH') or ''}"
    flags = ["--target=bpf", "-mcpu=v3", "-std=gnu11", "-O2", "-g", f"-I{CSRC}", "-isystem", headers]
    for source in sorted((CSRC / "bpf").glob("*.bpf.c")):
        name = source.name.removesuffix(".bpf.c")
        program = folder / f"{name}.bpf.o"
        subprocess.run([tool("clang-16", "clang"), *flags, "-c", str(source), "-o", str(program)], check=True)
        skeleton = subprocess.run(
            [tool("bpftool"), "gen", "skeleton", str(program)], check=True, stdout=subprocess.PIPE
        ).stdout
        (folder / f"{name}.skel.h").write_bytes(skeleton)


def sources() -> list[str]:
    """C files of the library, relative to the project's root; files with a ``main`` are left out."""
    files = [path for folder in FOLDERS for path in sorted((CSRC / folder).glob("*.c"))]
    files.append(CSRC / "stoq.c")
    return [str(path.relative_to(ROOT)) for path in files if path.name != "main.c"]


def declarations(header: str) -> str:
    """What cffi needs of the header: no comments, and of the preprocessor only ``#define NAME number``."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    kept = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            if re.match(r"^\s*#define\s+\w+\s+(0x[0-9a-fA-F]+|\d+)\s*$", line):
                kept.append(line.rstrip())
        elif line.strip():
            kept.append(line.rstrip())
    return "\n".join(kept)


def make_builder() -> FFI:
    """The configured FFI; raises SystemExit naming what is missing."""
    if not (CSRC / "stoq.h").exists():
        sys.exit(f"{CSRC / 'stoq.h'} is missing: build from a complete source tree")
    builder = FFI()
    builder.cdef(declarations((CSRC / "stoq.h").read_text(encoding="utf-8")))
    libraries = ["uring", "bpf", "crypto"]
    macros: list[tuple[str, str | None]] = [("_GNU_SOURCE", "")]
    if has_ipsec_mb():
        libraries.append("IPSec_MB")
        macros.append(("STOQ_HAVE_IPSEC_MB", "1"))
    static = os.environ.get("STOQ_LIBRARY")
    if static:
        builder.set_source(
            "dataplane._stoq",
            '#include "stoq.h"',
            include_dirs=["csrc"],
            extra_objects=[static],
            depends=[static, "csrc/stoq.h"],
            libraries=libraries,
            extra_compile_args=["-O2", "-g"],
            extra_link_args=["-pthread"],
        )
    else:
        build_skeletons()
        builder.set_source(
            "dataplane._stoq",
            '#include "stoq.h"',
            sources=sources(),
            include_dirs=["csrc", "build"],
            define_macros=macros,
            libraries=libraries,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        )
    return builder


ffibuilder = make_builder()
