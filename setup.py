"""Builds the extension `dataplane._stoq` (cffi, API mode); everything else is in pyproject.toml.

`pip install .` compiles the C files itself; under `make` it links the library that make has built
(STOQ_LIBRARY).
"""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "dataplane"))

from _generate import generate  # noqa: E402

generate(ROOT)
setup(cffi_modules=["dataplane/_build.py:ffibuilder"])
