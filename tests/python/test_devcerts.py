"""`stoq dev-certs`: what it writes, what it refuses."""

from __future__ import annotations

import ipaddress
import itertools
import stat
from pathlib import Path

import pytest
from cryptography import x509

from control.devcerts import DevCertsError, write
from control.handshake import Credentials, load_credentials, load_trust
from control.handshake.credentials import CredentialsError


def names_of(credentials: Credentials) -> list[object]:
    extension = credentials.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [name.value for name in extension.value]


def test_files_and_modes(tmp_path: Path) -> None:
    files = write(tmp_path / "new", ["alpha", "beta"], ["::1", "fd00::1"])
    assert sorted(path.name for path in files) == [
        "alpha.key", "alpha.pem", "beta.key", "beta.pem", "ca.key", "ca.pem",
    ]  # fmt: skip
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) & 0o177 == (0 if path.suffix == ".key" else 0o044)
    credentials = load_credentials(tmp_path / "new/alpha.pem", tmp_path / "new/alpha.key")
    assert names_of(credentials) == ["alpha", ipaddress.ip_address("::1"), ipaddress.ip_address("fd00::1")]
    credentials.certificate.verify_directly_issued_by(load_trust(tmp_path / "new/ca.pem").anchors[0])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "b.key").write_text("precious")
    with pytest.raises(DevCertsError, match=r"b\.key exists"):
        write(tmp_path, ["a", "b"])
    assert [path.name for path in tmp_path.iterdir()] == ["b.key"], "nothing at all was written"
    assert (tmp_path / "b.key").read_text() == "precious"


@pytest.mark.parametrize("names", [["ca"], ["a", "a"], ["../up"], [""]])
def test_names_that_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DevCertsError):
        write(tmp_path, names)
    assert not list(tmp_path.iterdir())


def test_ipv4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DevCertsError, match="IPv6-only"):
        write(tmp_path, ["a"], ["127.0.0.1"])


def test_long_chains(tmp_path: Path) -> None:
    write(tmp_path, ["a"], chain_length=5)
    credentials = load_credentials(tmp_path / "a.pem", tmp_path / "a.key")
    assert len(credentials.chain) == 5
    chain = [credentials.certificate, *credentials.chain, *load_trust(tmp_path / "ca.pem").anchors]
    for child, parent in itertools.pairwise(chain):
        child.verify_directly_issued_by(parent)


def test_credentials_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"])
    with pytest.raises(CredentialsError, match="not the key of"):
        load_credentials(tmp_path / "a.pem", tmp_path / "b.key")
    with pytest.raises(CredentialsError, match="cannot read"):
        load_credentials(tmp_path / "none.pem", tmp_path / "a.key")
    with pytest.raises(CredentialsError, match="no PEM"):
        load_trust(tmp_path / "a.key")
