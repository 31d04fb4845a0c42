"""A handshake process: TLS for connections whose packets another process moves.

      python -m control.handshake.process      with a stream socket as standard input

Started by `control.handshake.processes` only. It has no files, no sockets and, once it is set up, no
privileges; it ends when its node does.
"""

from __future__ import annotations

import socket
import sys
import time

from control import privileges
from control.handshake.exchange import (
    READY,
    Call,
    Complete,
    Crypto,
    Fail,
    Forget,
    Frames,
    Keys,
    Logged,
    Params,
    Receive,
    Reply,
    Request,
    Secret,
    Setup,
    Start,
    Update,
    config_of,
    frame,
)
from control.handshake.factory import TlsFactory
from control.handshake.session import TlsSession
from control.handshake.tickets import TicketKeys
from dataplane.address import Address
from dataplane.handshake import Aead, Level, PeerIdentity

READ_BYTES = 1 << 16
UNKNOWN_PEER = Address("::", 0)  # The client's address plays no part in TLS.


class Recorder:
    """A HandshakeSink whose calls go into the reply."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self.session: TlsSession | None = None
        self.over = False

    def crypto(self, level: Level, data: bytes) -> None:
        """See HandshakeSink."""
        self._calls.append(Crypto(level, data))

    def secret(self, level: Level, *, send: bool, aead: Aead, secret: bytes) -> None:
        """See HandshakeSink."""
        self._calls.append(Secret(level, send, aead, secret))

    def peer_params(self, data: bytes) -> None:
        """See HandshakeSink."""
        self._calls.append(Params(data))

    def complete(self, alpn: str, identity: PeerIdentity | None) -> None:
        """See HandshakeSink."""
        assert self.session is not None
        verdict = self.session.unconfirmed
        chain = self.session.chain if verdict is not None else ()
        self._calls.append(Complete(alpn, identity, self.session.resumed, chain))
        self.over = True

    def fail(self, code: int, reason: str) -> None:
        """See HandshakeSink."""
        self._calls.append(Fail(code, reason))
        self.over = True


class Process:
    """The handshakes of one process. A handshake's state lives until it is complete, failed or forgotten."""

    def __init__(self, sent: Setup) -> None:
        self._calls: list[Call] = []
        self._sessions: dict[int, Recorder] = {}
        config = config_of(sent, self._log_key)
        self._keys = TicketKeys.given(config.ticket_lifetime, time.time)
        self._factory = TlsFactory(config, ticket_keys=self._keys, confirms=False)

    def _log_key(self, client_random: bytes, label: str, secret: bytes) -> None:
        self._calls.append(Logged(client_random, label, secret))

    def handle(self, request: Request) -> Reply | None:
        """Do what is asked; None: nothing is to be said."""
        calls = self._calls
        calls.clear()
        if isinstance(request, Receive):
            recorder = self._sessions.get(request.number)
            if recorder is None or recorder.session is None:
                return None
            recorder.session.receive(Level(request.level), request.data)
        elif isinstance(request, Start):
            recorder = self._sessions[request.number] = Recorder(calls)
            recorder.session = self._factory.server(recorder, UNKNOWN_PEER)
            recorder.session.start(request.params)
        elif isinstance(request, Forget):
            self._sessions.pop(request.number, None)
            return None
        elif isinstance(request, Setup):
            self._factory.replace(config_of(request, self._log_key))
            return None
        elif isinstance(request, Update):
            self._factory.update_trust(request.state)
            return None
        else:
            assert isinstance(request, Keys), request
            self._keys.take(request.keys)
            return None
        if recorder.over:
            del self._sessions[request.number]
        return Reply(request.number, calls) if calls else None


def serve(connection: socket.socket) -> None:
    """Until the node is gone."""
    frames, process = Frames(Request), None
    while data := connection.recv(READ_BYTES):
        for request in frames.feed(data):
            if process is None:
                assert isinstance(request, Setup), "the first word is the configuration"
                process = Process(request)
                if request.drop:
                    privileges.drop(request.user)
                connection.sendall(frame(Reply(READY, [])))
            elif (reply := process.handle(request)) is not None:
                connection.sendall(frame(reply))


def main() -> None:
    """Entry point."""
    with socket.socket(fileno=0) as connection:
        try:
            serve(connection)
        except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            sys.exit(0)


if __name__ == "__main__":
    main()
