"""Questions and answers between nodes: one stream of a `stoq/1` connection a call.

      caller                                          server
      Request(method, id, time, body), FIN ────────▶  method known? caller permitted? body typed?
      ◀──────────────────────────────────────────────  Answer(body) … or Failure(kind, text), FIN

Frames are a 4-byte big-endian length and MessagePack, typed by msgspec. A method answers once, or goes on answering
(`follow`) until the caller leaves. Who calls is what the handshake proved, never what a frame says.
"""

from control.rpc.client import RpcClient
from control.rpc.errors import CallFailed, FrameError, RpcError
from control.rpc.frames import read_frame, write_frame
from control.rpc.server import Bounds, Caller, Method, RpcServer

__all__ = [
    "Bounds",
    "CallFailed",
    "Caller",
    "FrameError",
    "Method",
    "RpcClient",
    "RpcError",
    "RpcServer",
    "read_frame",
    "write_frame",
]
