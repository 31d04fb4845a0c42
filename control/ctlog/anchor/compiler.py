"""Makes contract.json from heads.vy; needs Vyper, which only those who change the contract (and the tests) need.

python -m control.ctlog.anchor.compiler
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from control.ctlog.anchor.contract import CONTRACT_FILE, SOURCE_FILE, Contract

HERE = Path(__file__).resolve().parent


def compile_contract() -> Contract:
    """Compile heads.vy. Raises ImportError without Vyper, and Vyper's own errors."""
    from vyper import compile_code  # type: ignore[import-untyped]

    source = (HERE / SOURCE_FILE).read_text(encoding="utf-8")
    made = compile_code(source, output_formats=["abi", "bytecode", "bytecode_runtime", "layout"])
    return Contract(
        compiler=f"vyper {metadata.version('vyper')}",
        source_sha256=hashlib.sha256(source.encode()).hexdigest(),
        abi=made["abi"],
        bytecode=made["bytecode"],
        bytecode_runtime=made["bytecode_runtime"],
        slots={name: place["slot"] for name, place in made["layout"]["storage_layout"].items()},
    )


def main() -> None:
    """Write contract.json anew."""
    text = json.dumps(msgspec.to_builtins(compile_contract()), indent=1, sort_keys=True) + "\n"
    (HERE / CONTRACT_FILE).write_text(text, encoding="ascii")
    sys.stdout.write(f"{HERE / CONTRACT_FILE}: {len(text)} bytes\n")


if __name__ == "__main__":
    main()
