"""Who asks: as the authority sees and audits them. Made from what the caller proved, never from what it says."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from control.handshake.verify import subject_of
from control.trustchain.keys import spki_sha256
from control.trustchain.roles import Role, roles_of


@dataclass(frozen=True, slots=True)
class Actor:
    """`name` for people; `fingerprint` and `node_id` (SHA-256 of the certificate, and of its SubjectPublicKeyInfo) are empty
    without a certificate; `via`: over what it came; `source`: from where, for counting failures."""

    name: str
    roles: frozenset[Role]
    via: str
    fingerprint: bytes = b""
    node_id: bytes = b""
    source: str = ""

    @classmethod
    def of_certificate(cls, certificate: x509.Certificate, via: str = "stoq", source: str = "") -> Actor:
        """The holder of a certificate that was verified. Raises BadRequest when its roles cannot be read."""
        return cls(
            subject_of(certificate),
            roles_of(certificate),
            via,
            certificate.fingerprint(SHA256()),
            spki_sha256(certificate),
            source,
        )

    @classmethod
    def local(cls) -> Actor:
        """Whoever runs the command: who can read the authority's keys is its administrator."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = "?"
        return cls(f"{user} (uid {os.getuid()})", frozenset({Role.ADMIN}), "command line")

    @classmethod
    def anonymous(cls, source: str, via: str = "stoq") -> Actor:
        """Somebody without a certificate."""
        return cls("anonymous", frozenset(), via, source=source)

    @classmethod
    def component(cls, name: str, *roles: Role) -> Actor:
        """A part of this program that acts for others, and has checked them by its own rules (ACME)."""
        return cls(name, frozenset(roles), name)

    def __str__(self) -> str:
        """As it stands in the audit log."""
        parts = [self.name, f"[{','.join(sorted(self.roles))}]", f"via {self.via}"]
        if self.fingerprint:
            parts.append(f"certificate {self.fingerprint.hex()[:16]}")
        if self.source:
            parts.append(f"from {self.source}")
        return " ".join(parts)
