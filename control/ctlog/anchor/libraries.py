"""web3 and what comes with it, imported in one place, for two reasons: what is said when it is not installed; and one
of its libraries (py_ecc) lets Python recurse 100,000 deep from its import on, in the whole process. Then some kilobytes
of nested JSON, from anybody, end the process with a segmentation fault instead of a RecursionError. So the limit is put
back.
"""

from __future__ import annotations

import sys

from control.ctlog.anchor.interface import LibraryMissing

_limit = sys.getrecursionlimit()
try:
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError
    from eth_account import Account
    from web3 import AsyncHTTPProvider, Web3
    from web3.providers.rpc.utils import ExceptionRetryConfiguration
    from web3.types import RPCEndpoint
except ImportError as missing:
    raise LibraryMissing(missing) from None
finally:
    sys.setrecursionlimit(_limit)

__all__ = [
    "Account",
    "AsyncHTTPProvider",
    "DecodingError",
    "ExceptionRetryConfiguration",
    "RPCEndpoint",
    "Web3",
    "decode",
]
