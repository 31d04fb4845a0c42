"""A node's home: what it keeps of its membership, in one directory.

    HOME/node.json       its name, and where its authority is
    HOME/identity.pem    its key and certificate chain, leaf first; 0600, replaced whole when the certificate is renewed
    HOME/bundle.json     the trust bundle it judges peers by, as it came last

`stoq join TOKEN HOME` makes one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.handshake.credentials import Credentials, CredentialsError, load_credentials
from control.trustchain.bundle import TrustBundle, load_bundle, save_bundle
from control.trustchain.errors import KeyUnavailable
from control.trustchain.keys import SigningKey, read_private_file, sync_directory

NODE, IDENTITY, BUNDLE = "node.json", "identity.pem", "bundle.json"


class HomeError(KeyUnavailable):
    """A node's home is missing or damaged."""


class HomeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`node.json`. `authority` is [host]:port; its certificate names the host."""

    name: str
    authority: str
    format: int = 1


@dataclass(frozen=True, slots=True)
class Home:
    """A node's home, read."""

    directory: Path
    config: HomeConfig

    @classmethod
    def read(cls, directory: Path) -> Home:
        """Raises HomeError."""
        path = directory / NODE
        try:
            return cls(directory, msgspec.json.decode(path.read_bytes(), type=HomeConfig))
        except FileNotFoundError:
            raise HomeError(f"{directory} is no node's home: `stoq join TOKEN {directory}` makes one") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise HomeError(f"{path} cannot be read: {error}") from None

    @classmethod
    def create(cls, directory: Path, config: HomeConfig) -> Home:
        """A new one, that can be written; holds no certificate yet. Raises HomeError when there is one."""
        if (directory / NODE).exists():
            raise HomeError(f"{directory} is a node's home already: nothing was changed; name another directory")
        probe = directory / f".writable.{os.getpid()}"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise HomeError(f"cannot write in {directory}: {error.strerror}") from None
        return cls(directory, config)

    def complete(self) -> None:
        """Everything is there: write what makes it a home."""
        data = msgspec.json.format(msgspec.json.encode(self.config)) + b"\n"
        _replace(self.directory / NODE, data, 0o644)

    # ---- certificate and key ----

    def credentials(self) -> Credentials:
        """The node's chain and key. Raises CredentialsError or KeyUnavailable."""
        path = self.directory / IDENTITY
        read_private_file(path, "identity")  # Refuses what others may read.
        return load_credentials(path, path)

    def write_credentials(self, key: SigningKey, chain: list[x509.Certificate]) -> Credentials:
        """Replace both at once; a root at the end of the chain is left out, peers have it. Raises KeyUnavailable."""
        if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
            chain = chain[:-1]
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem += b"".join(one.public_bytes(Encoding.PEM) for one in chain)
        _replace(self.directory / IDENTITY, pem, 0o600)
        return self.credentials()

    # ---- trust ----

    def bundle(self) -> TrustBundle:
        """The trust bundle. Raises BundleError."""
        return load_bundle(self.directory / BUNDLE)

    def write_bundle(self, bundle: TrustBundle) -> None:
        """Replace it. Raises BundleError."""
        save_bundle(self.directory / BUNDLE, bundle)


def _replace(path: Path, data: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise HomeError(f"cannot write {path}: {error.strerror}") from None


__all__ = ["CredentialsError", "Home", "HomeConfig", "HomeError"]
