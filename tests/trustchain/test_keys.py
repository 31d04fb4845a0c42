"""Keys in files and in a PKCS#11 token (SoftHSM, the real library)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, Hash
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509 import ocsp

from control.trustchain.actor import Actor
from control.trustchain.authority import Authority
from control.trustchain.directory import InitOptions, init, load_config, load_root_key
from control.trustchain.errors import KeyUnavailable
from control.trustchain.keys import SigningKey, encode_key, generate, load_key, open_key, same_key, spki, write_key
from control.trustchain.pkcs11 import TokenKey, make_token_key, open_token_key, parse_uri
from control.trustchain.profiles import Names
from control.trustchain.requests import IssueRequest, make_csr
from control.trustchain.roles import Role
from tests.trustchain.clock import Clock
from tests.trustchain.conftest import openssl

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
ADMIN = Actor("admin", frozenset({Role.ADMIN}), "test")


@pytest.mark.parametrize(
    "key", [generate(), generate("p384"), ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)]
)
def test_a_key_file_is_private_and_reads_back(tmp_path: Path, key: SigningKey) -> None:
    old = os.umask(0)
    try:
        write_key(tmp_path / "plain.key", key)
        write_key(tmp_path / "locked.key", key, b"correct horse")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert spki(load_key(tmp_path / "plain.key")) == spki(key)
    assert spki(load_key(tmp_path / "locked.key", lambda: b"correct horse")) == spki(key)
    # Others read both, and the locked one is scrypt.
    openssl("pkey", "-in", tmp_path / "plain.key", "-noout", "-check")
    openssl("pkey", "-in", tmp_path / "locked.key", "-passin", "pass:correct horse", "-noout", "-check")
    assert "scrypt" in openssl("asn1parse", "-in", tmp_path / "locked.key")


def test_key_files_that_are_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "a.key", generate()
    write_key(path, key, b"correct horse")
    with pytest.raises(KeyUnavailable, match="nothing was overwritten"):
        write_key(path, generate())
    with pytest.raises(KeyUnavailable, match="passphrase-file"):
        load_key(path)
    with pytest.raises(KeyUnavailable, match="does not open"):
        load_key(path, lambda: b"wrong horse")
    with pytest.raises(KeyUnavailable, match="at least 8"):
        write_key(tmp_path / "b.key", key, b"short")
    assert not (tmp_path / "b.key").exists()
    for mode in (0o640, 0o604, 0o620, 0o660):
        path.chmod(mode)
        with pytest.raises(KeyUnavailable, match="chmod 600"):
            load_key(path, lambda: b"correct horse")
    with pytest.raises(KeyUnavailable, match="cannot read"):
        load_key(tmp_path / "none.key")
    os.mkfifo(tmp_path / "fifo.key", 0o600)
    with pytest.raises(KeyUnavailable, match="not a file"):
        load_key(tmp_path / "fifo.key")
    for name, data in (("empty", b""), ("garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")):
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
        with pytest.raises(KeyUnavailable, match="no PEM private key"):
            load_key(tmp_path / name)
    with pytest.raises(KeyUnavailable, match="no curve"):
        generate("p521")


def test_a_written_key_is_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyUnavailable):
        write_key(tmp_path / "link.key", generate())
    assert not (tmp_path / "elsewhere").exists()


def test_encrypted_keys_differ_each_time() -> None:
    key = generate()
    assert encode_key(key, b"correct horse") != encode_key(key, b"correct horse")
    assert load_pem_private_key(encode_key(key, b"correct horse"), b"correct horse")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token of our own; the beginning and the end of its keys' URIs, with %s for the object."""
    if not MODULE.exists() or shutil.which("softhsm2-util") is None:
        pytest.fail("SoftHSM is missing: apt install softhsm2")
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory / 'tokens'}\nlog.level = ERROR\n")
    # The module reads this once, when it is loaded; nothing else in these tests uses it.
    os.environ["SOFTHSM2_CONF"] = str(directory / "softhsm2.conf")
    command = ["softhsm2-util", "--init-token", "--free", "--label", "stoq test", "--so-pin", "8765", "--pin", "4321"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    pin = directory / "pin"
    pin.write_text("4321\n")
    pin.chmod(0o600)
    return f"pkcs11:token=stoq%20test;object=%s?module-path={MODULE}&pin-source={pin}".replace("%20", "%%20")


@pytest.mark.parametrize("curve", ["p256", "p384"])
def test_a_token_key_signs_as_any_other(token: str, curve: str) -> None:
    uri = token % f"key-{curve}"
    made = make_token_key(uri, curve)
    key = open_key(uri, Path())
    assert isinstance(key, TokenKey)
    assert spki(key) == spki(made)
    for algorithm in (SHA256(), SHA384()):
        key.public_key().verify(key.sign(b"data", ec.ECDSA(algorithm)), b"data", ec.ECDSA(algorithm))
    hasher = Hash(SHA256())
    hasher.update(b"data")
    prehashed = ec.ECDSA(Prehashed(SHA256()))
    key.public_key().verify(key.sign(hasher.finalize(), prehashed), b"data", ec.ECDSA(SHA256()))
    for leak in (key.private_numbers, lambda: key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())):
        with pytest.raises(KeyUnavailable, match="does not leave"):
            leak()
    with pytest.raises(KeyUnavailable, match="nothing was overwritten"):
        make_token_key(uri, curve)


def test_what_a_uri_lacks_is_said(token: str, tmp_path: Path) -> None:
    with pytest.raises(KeyUnavailable, match="no such key"):
        open_token_key(token % "nowhere")
    with pytest.raises(KeyUnavailable, match="no such token"):
        open_token_key((token % "x").replace("stoq%20test", "other"))
    with pytest.raises(KeyUnavailable, match="module"):
        open_token_key("pkcs11:token=a;object=b")
    with pytest.raises(KeyUnavailable, match="name the token and the object"):
        open_token_key(f"pkcs11:token=a?module-path={MODULE}")
    with pytest.raises(KeyUnavailable, match="cannot be loaded"):
        open_token_key(f"pkcs11:token=a;object=b?module-path={tmp_path}/none.so")
    with pytest.raises(KeyUnavailable, match="unknown, twice"):
        open_token_key(f"pkcs11:token=a;token=b;object=b?module-path={MODULE}")
    (tmp_path / "pin").write_text("4321")
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(KeyUnavailable, match="chmod 600"):
        open_token_key(f"pkcs11:token=a;object=b?module-path={MODULE}&pin-source={tmp_path}/pin")
    assert parse_uri("pkcs11:token=a%3Bb;id=%01%ff?module-path=/m").id == b"\x01\xff"
    assert "4321" not in str(parse_uri("pkcs11:token=a;object=b?module-path=/m&pin-value=4321"))


def test_a_wrong_pin_is_said(token: str) -> None:
    # In a process of its own: here the token is logged in already, and a login is the process's.
    uri = (token % "key-p256").partition("&")[0] + "&pin-value=9999"
    code = (
        "import sys; from control.trustchain.pkcs11 import open_token_key; from control.trustchain.errors import *\n"
        "try: open_token_key(sys.argv[1])\nexcept KeyUnavailable as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, timeout=60, check=True
    )
    assert "the PIN is wrong" in done.stdout


def test_an_authority_with_its_keys_in_a_token(token: str, tmp_path: Path) -> None:
    directory, clock = tmp_path / "ca", Clock()
    options = InitOptions(
        "Token", root_key=token % "root", intermediate_key=token % "intermediate", allow_unlogged=True, root_curve="p384"
    )
    init(directory, options, clock())
    assert not list(directory.glob("*.key"))
    node = generate()

    async def main() -> tuple[x509.Certificate, bytes, bytes]:
        async with Authority.open(directory, clock=clock) as authority:
            asked = IssueRequest(make_csr(node, "", Names(("a.example",))))
            several = await asyncio.gather(*(authority.issue(asked, ADMIN) for _ in range(10)))
            await authority.revoke(several[0].row.serial.hex(), "superseded", ADMIN)
            crl = await authority.crl()
            request = ocsp.OCSPRequestBuilder().add_certificate(
                several[0].certificate, authority.issuer.certificate, SHA256()
            )
            answer = await authority.ocsp(request.build().public_bytes(Encoding.DER))
            assert ocsp.load_der_ocsp_response(answer).certificate_status is ocsp.OCSPCertStatus.REVOKED
            root_key = load_root_key(directory, load_config(directory), None)
            issuer = await authority.rotate_intermediate(root_key, ADMIN, key=token % "intermediate-2")
            assert isinstance(issuer.key, TokenKey)
            rotated = await authority.issue(asked, ADMIN)
            (tmp_path / "chain.pem").write_bytes(rotated.pem_chain)
            assert x509.load_der_x509_crl(crl.der).is_signature_valid(authority.issuers[0].certificate.public_key())  # type: ignore[arg-type]
            return several[1].certificate, answer, several[1].pem_chain

    certificate, _, chain = asyncio.run(asyncio.wait_for(main(), 60))
    assert same_key(node, certificate)
    (tmp_path / "first.pem").write_bytes(chain)
    for name in ("first.pem", "chain.pem"):
        openssl("verify", "-CAfile", directory / "root.pem", "-untrusted", tmp_path / name, tmp_path / name)
