# The compiled module (cffi API mode). Its contents are C; dataplane wraps them in typed Python.
from typing import Any

ffi: Any
lib: Any
