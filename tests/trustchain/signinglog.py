"""A log that only signs: SCTs as a real one gives them, without a tree; and the ways in which a log can be bad."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from control.ctlog.errors import Unavailable
from control.ctlog.precert import precertificate_entry
from control.ctlog.structs import Sct, key_id, sct_input
from tests.trustchain.clock import Clock


class SigningLog:
    """`fault`: "" none, "down", "silent", "forged" (another key signs), "future", "crash" (an error of the network)."""

    def __init__(self, name: str, clock: Clock, fault: str = "") -> None:
        self.name = name
        self.fault = fault
        self.asked = 0
        self._private = ec.generate_private_key(ec.SECP256R1())
        self._clock = clock
        self.key = self._private.public_key()
        self.log_id = key_id(self.key)

    async def add_pre_chain(self, chain: Sequence[bytes]) -> Sct:
        self.asked += 1
        if self.fault == "down":
            raise Unavailable("the log is down")
        if self.fault == "crash":
            raise ConnectionResetError("reset")
        if self.fault == "silent":
            await asyncio.Event().wait()
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        entry = precertificate_entry(certificates[0], certificates[1:])
        timestamp = int(self._clock() * 1000) + (3_600_000 if self.fault == "future" else 0)
        signer = ec.generate_private_key(ec.SECP256R1()) if self.fault == "forged" else self._private
        signature = signer.sign(sct_input(entry, timestamp, b""), ec.ECDSA(SHA256()))
        return Sct(self.log_id, timestamp, b"", signature)

    async def add_chain(self, chain: Sequence[bytes]) -> Sct:
        raise Unavailable("final certificates are not asked for in these tests")
