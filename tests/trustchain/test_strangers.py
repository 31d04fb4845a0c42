"""Strangers against an authority that runs as it does in life, `stoq ca serve` with two logs: OpenSSL verifies its
certificates, SCTs, lists and OCSP answers; certbot and the `acme` library get certificates from it.

certbot is given a CSR: without one it reads the common name of what it got as a DNS name, and there are only addresses
here, whatever the machine's resolver knows.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from acme import challenges, client, crypto_util, messages
from acme.standalone import HTTP01RequestHandler, HTTP01Server
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from control.ctlog.precert import embedded_scts, sct_extension
from control.ctlog.site import LogConfig, create, load_log_key
from control.ctlog.structs import key_id
from control.trustchain import directory as ca_directory
from control.trustchain.certificates import Places
from tests.ctlog.world import Ca
from tests.peers_ct.processes import Serving, free_port, run, running, serving

PATIENCE = 20.0
LOGS = ("a", "b")
HTML_GARBAGE = b"<html></html>"


@dataclass
class Scene:
    """An authority that is served, with its logs beside it."""

    directory: Path
    served: Serving
    http_port: int  # Of CRLs and OCSP.
    validation_port: int  # Where http-01 looks.

    @property
    def root(self) -> Path:
        return self.directory / "ca/root.pem"

    @property
    def issuer(self) -> Path:
        return self.directory / "ca/intermediate-1.pem"

    @property
    def acme(self) -> str:
        return str(self.served.listening["acme"])

    def url(self, path: str) -> str:
        return f"http://[::1]:{self.http_port}/ca/{path}"

    def log_key(self, name: str) -> Path:
        return self.directory / f"log-{name}/log.pem"

    def log_file(self, name: str, *logs: str) -> Path:
        """A list of these logs, as OpenSSL reads it."""
        lines = [f"enabled_logs = {','.join(logs)}"]
        for log in logs:
            spki = load_log_key(str(self.log_key(log))).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            lines += [f"[{log}]", f"description = log {log}", f"key = {base64.b64encode(spki).decode()}"]
        path = self.directory / name
        path.write_text("\n".join(lines) + "\n")
        return path


@dataclass
class Certificate:
    """Files: the leaf, its chain without the root, its key."""

    leaf: Path
    chain: Path
    key: Path

    def load(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.leaf.read_bytes())


def openssl(*arguments: object, code: int = 0, stdin: str | bytes = "") -> str:
    """What `openssl` says on both outputs."""
    done = run("openssl", *map(str, arguments), stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory, http, validation = tmp_path_factory.mktemp("strangers"), free_port(), free_port()
    base = f"http://[::1]:{http}/ca"
    options = ca_directory.InitOptions(
        "Strangers",
        min_scts=len(LOGS),
        places=Places(f"{base}/crl/1.crl", f"{base}/ocsp", f"{base}/issuers/1.cer"),
        root_crl_url=f"{base}/root.crl",
    )
    ca_directory.init(directory / "ca", options, time.time())
    root = ca_directory.load_certificate(directory / "ca" / ca_directory.ROOT)
    logs: list[str] = []
    for name in LOGS:
        asyncio.run(create(directory / f"log-{name}", LogConfig(f"localhost/{name}", period=0.01), [root], time.time))
        logs += ["--log", str(directory / f"log-{name}")]
    with serving(
        "ca", "serve", "-d", directory / "ca", "--listen", "[::1]:0", "--http", f"[::1]:{http}", *logs,
        "--acme", "[::1]:0", "--acme-host", "::1", "--acme-open", "--acme-loopback", "--acme-http-port", str(validation),
    ) as served:  # fmt: skip
        yield Scene(directory, served, http, validation)


class Certbot:
    """certbot with all its directories in one place."""

    def __init__(self, scene: Scene) -> None:
        self._home = scene.directory / "certbot"
        self._root = scene.root
        self._common = ["--server", scene.acme, "--non-interactive"]
        for option in ("config-dir", "work-dir", "logs-dir"):
            self._common += [f"--{option}", str(self._home / option)]

    def run(self, *arguments: str | Path) -> None:
        """A command of it that must succeed."""
        program = Path(sys.executable).with_name("certbot")
        done = run(program, *arguments, *self._common, env={"REQUESTS_CA_BUNDLE": str(self._root)})
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def certified(scene: Scene) -> Certificate:
    """A certificate for ::1 that certbot got by http-01, for a key and a CSR of OpenSSL's."""
    where = scene.directory / "web"
    where.mkdir()
    made = Certificate(where / "cert.pem", where / "chain.pem", where / "key.pem")
    csr = where / "web.csr"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    names = ("-subj", "/", "-addext", "subjectAltName=IP:::1")
    openssl("req", "-new", *curve, "-nodes", "-keyout", made.key, *names, "-out", csr)
    Certbot(scene).run(
        "certonly", "--csr", csr, "--cert-path", made.leaf, "--chain-path", made.chain,
        "--fullchain-path", where / "fullchain.pem", "--standalone", "--http-01-address", "::1",
        "--http-01-port", str(scene.validation_port), "--agree-tos", "-m", "ops@stoq.test", "--no-eff-email",
    )  # fmt: skip
    return made


def verify(scene: Scene, certificate: Certificate, *more: object, code: int = 0) -> str:
    """`openssl verify` with the lists from where the certificates say that they are; it looks for the root's own in a file
    only, as the root does not say."""
    place = re.search(r"URI:(\S+)", openssl("x509", "-in", scene.issuer, "-noout", "-ext", "crlDistributionPoints"))
    assert place is not None
    with urllib.request.urlopen(place[1], timeout=PATIENCE) as answer:
        openssl("crl", "-inform", "DER", "-out", scene.directory / "root-crl.pem", stdin=answer.read())
    lists = ("-crl_check_all", "-crl_download", "-CRLfile", scene.directory / "root-crl.pem")
    trust = ("-CAfile", scene.root, "-untrusted", certificate.chain)
    return openssl("verify", *trust, *lists, "-purpose", "sslserver", *more, certificate.leaf, code=code)


def test_certbot_gets_what_openssl_verifies(scene: Scene, certified: Certificate) -> None:
    """The certificate has an SCT of each log, and is good for its name, by the lists it names itself; for no other name.
    What it says its issuer is can be fetched there."""
    leaf = certified.load()
    assert {sct.log_id for sct in embedded_scts(leaf)} == {key_id(load_log_key(str(scene.log_key(log)))) for log in LOGS}
    assert "OK" in verify(scene, certified, "-verify_ip", "::1")
    assert "mismatch" in verify(scene, certified, "-verify_ip", "::2", code=2)
    with urllib.request.urlopen(scene.url("issuers/1.cer"), timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] == "application/pkix-cert"
        openssl("verify", "-partial_chain", "-CAfile", scene.root, "-untrusted", _pem(scene, answer.read()), certified.leaf)


def _pem(scene: Scene, der: bytes) -> Path:
    path = scene.directory / "fetched.pem"
    path.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    return path


# ---- SCTs in TLS ----


@contextmanager
def tls_server(directory: Path, certificate: Certificate) -> Iterator[str]:
    """OpenSSL's, on ::1; where it listens."""
    files = ("-cert", certificate.leaf, "-key", certificate.key, "-cert_chain", certificate.chain)
    log = directory / "s_server.log"
    with running(["openssl", "s_server", "-www", "-accept", "[::1]:0", *files], log):
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(r"^ACCEPT (\[::1\]:\d+)$", log.read_text(), re.MULTILINE)) is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        yield found[1]


def sct_states(address: str, root: Path, logs: Path) -> list[str]:
    """What `openssl s_client -ct` says of each SCT of a server whose chain is good."""
    argv = ("openssl", "s_client", "-connect", address, "-CAfile", root, "-verify_return_error", "-ct", "-ctlogfile", logs)
    said = run(*argv).stdout  # An SCT that is wrong makes it exit with 1, and the connection stand.
    assert "Verification: OK" in said, said
    found = re.findall(r"^SCT validation status: (.+)$", said, re.MULTILINE)
    assert f"SCTs present ({len(found)})" in said, said
    return sorted(found)


def test_s_client_validates_the_scts(scene: Scene, certified: Certificate, tmp_path: Path) -> None:
    """Both SCTs are valid by both logs' keys; one is of an unknown log when one is known; and neither is valid in a
    certificate that it was not made for."""
    both, one = scene.log_file("both.cnf", *LOGS), scene.log_file("one.cnf", "b")
    with tls_server(tmp_path, certified) as address:
        assert sct_states(address, scene.root, both) == ["valid", "valid"]
        assert sct_states(address, scene.root, one) == ["unknown log", "valid"]

    other = Ca()
    scts = sct_extension(embedded_scts(certified.load()))
    moved = other.builder("borrowed", days=2000).add_extension(scts, critical=False)
    borrowed = Certificate(tmp_path / "leaf.pem", tmp_path / "chain.pem", tmp_path / "key.pem")
    borrowed.leaf.write_bytes(other.issuer.sign(moved).public_bytes(Encoding.PEM))
    borrowed.chain.write_bytes(other.issuer.certificate.public_bytes(Encoding.PEM))
    borrowed.key.write_bytes(other.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    root = tmp_path / "root.pem"
    root.write_bytes(other.root.certificate.public_bytes(Encoding.PEM))
    with tls_server(tmp_path, borrowed) as address:
        assert sct_states(address, root, both) == ["invalid", "invalid"]


# ---- OCSP and lists ----


def ocsp(scene: Scene, *arguments: object) -> str:
    """`openssl ocsp` about certificates of the intermediate: an answer that is signed by it, and its nonce returned."""
    said = openssl("ocsp", "-CAfile", scene.root, "-issuer", scene.issuer, *arguments)
    assert "Response verify OK" in said and "WARNING" not in said and "rror" not in said, said
    return said


def test_ocsp(scene: Scene, certified: Certificate, tmp_path: Path) -> None:
    """Good and unknown, with a nonce and without, asked for by SHA-1 and by SHA-256, by POST and by GET."""
    url = openssl("x509", "-in", certified.leaf, "-noout", "-ocsp_uri").strip()
    assert url == scene.url("ocsp")
    leaf = certified.leaf
    assert f"{leaf}: good" in ocsp(scene, "-url", url, "-cert", leaf)
    assert f"{leaf}: good" in ocsp(scene, "-url", url, "-no_nonce", "-cert", leaf)
    assert f"{leaf}: good" in ocsp(scene, "-url", url, "-sha256", "-cert", leaf)
    assert "0x1234: unknown" in ocsp(scene, "-url", url, "-serial", "0x1234")

    request, response = tmp_path / "request", tmp_path / "response"
    openssl("ocsp", "-issuer", scene.issuer, "-cert", leaf, "-reqout", request)
    path = quote(base64.b64encode(request.read_bytes()).decode(), safe="")
    with urllib.request.urlopen(f"{url}/{path}", timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] == "application/ocsp-response"
        response.write_bytes(answer.read())
    given = ("-no_nonce", "-respin", response, "-resp_text")  # That is: no other nonce than the request's.
    assert "Cert Status: good" in ocsp(scene, "-reqin", request, *given)
    openssl("ocsp", "-issuer", scene.issuer, "-cert", leaf, "-reqout", request)
    again = openssl("ocsp", "-CAfile", scene.root, "-issuer", scene.issuer, "-reqin", request, *given, code=1)
    assert "Nonce Verify error" in again
    spoiled = bytearray(response.read_bytes())
    spoiled[-20] ^= 1
    response.write_bytes(spoiled)
    wrong = ("-no_nonce", "-cert", leaf, "-respin", response)
    said = openssl("ocsp", "-CAfile", scene.root, "-issuer", scene.issuer, *wrong, code=1)
    assert "Response Verify Failure" in said


def test_ocsp_refuses(scene: Scene) -> None:
    """What is no request, or asks for more than one (RFC 5019), is malformed; of another issuer's certificates nothing is
    said; other types are not taken."""
    said = openssl("ocsp", "-issuer", scene.root, "-cert", scene.issuer, "-url", scene.url("ocsp"), code=1)
    assert "unauthorized (6)" in said
    said = openssl("ocsp", "-issuer", scene.issuer, "-serial", "1", "-serial", "2", "-url", scene.url("ocsp"), code=1)
    assert "malformedrequest (1)" in said
    malformed = scene.directory / "malformed"
    with urllib.request.urlopen(_post(scene, HTML_GARBAGE, "application/ocsp-request"), timeout=PATIENCE) as answer:
        malformed.write_bytes(answer.read())
    said = openssl("ocsp", "-issuer", scene.issuer, "-serial", "1", "-respin", malformed, code=1)
    assert "malformedrequest (1)" in said
    with urllib.request.urlopen(scene.url("ocsp/%3Chtml%3E"), timeout=PATIENCE) as answer:
        assert answer.read() == malformed.read_bytes()
    with pytest.raises(urllib.error.HTTPError, match="415"):
        urllib.request.urlopen(_post(scene, HTML_GARBAGE, "text/html"), timeout=PATIENCE)


def _post(scene: Scene, body: bytes, kind: str) -> urllib.request.Request:
    return urllib.request.Request(scene.url("ocsp"), body, {"Content-Type": kind})


# ---- The acme library; revocation ----


@contextmanager
def responder(port: int) -> Iterator[set[HTTP01RequestHandler.HTTP01Resource]]:
    """The library's own http-01 server; what it answers."""
    resources: set[HTTP01RequestHandler.HTTP01Resource] = set()
    server = HTTP01Server(("::1", port), resources, ipv6=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield resources
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def answer_all(
    acme: client.ClientV2, order: messages.OrderResource, resources: set[HTTP01RequestHandler.HTTP01Resource]
) -> None:
    """Begin http-01 for every authorization of an order."""
    for authorization in order.authorizations:
        one = next(one for one in authorization.body.challenges if isinstance(one.chall, challenges.HTTP01))
        response, validation = one.response_and_validation(acme.net.key)
        resources.add(HTTP01RequestHandler.HTTP01Resource(chall=one.chall, response=response, validation=validation))
        acme.answer_challenge(one, response)


def written(directory: Path, pem: str, key: bytes) -> Certificate:
    """A certificate with its chain in files."""
    leaf, *chain = x509.load_pem_x509_certificates(pem.encode())
    made = Certificate(directory / "cert.pem", directory / "chain.pem", directory / "key.pem")
    made.leaf.write_bytes(leaf.public_bytes(Encoding.PEM))
    made.chain.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    made.key.write_bytes(key)
    return made


def test_acme_library_and_revocation(scene: Scene, certified: Certificate, tmp_path: Path) -> None:
    """The `acme` library gets a certificate that is good, and revokes it: OCSP and the list that it names say so, with
    the reason, and OpenSSL refuses it; another certificate stays good."""
    network = client.ClientNetwork(
        JWKEC(key=ec.generate_private_key(ec.SECP256R1())), alg=ES256, verify_ssl=str(scene.root)  # type: ignore[arg-type]
    )
    acme = client.ClientV2(client.ClientV2.get_directory(scene.acme, network), network)
    acme.new_account(messages.NewRegistration.from_data(email="ops@stoq.test", terms_of_service_agreed=True))
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with responder(scene.validation_port) as resources:
        order = acme.new_order(crypto_util.make_csr(key, ipaddrs=[ipaddress.ip_address("::1")]))
        answer_all(acme, order, resources)
        made = written(tmp_path, acme.poll_and_finalize(order).fullchain_pem, key)
    assert len(embedded_scts(made.load())) == len(LOGS)
    verify(scene, made)
    assert f"{made.leaf}: good" in ocsp(scene, "-url", scene.url("ocsp"), "-cert", made.leaf)

    acme.revoke(made.load(), 1)
    said = ocsp(scene, "-url", scene.url("ocsp"), "-cert", made.leaf)
    assert f"{made.leaf}: revoked" in said and "Reason: keyCompromise" in said
    assert "certificate revoked" in verify(scene, made, code=2)
    verify(scene, certified)

    serial = f"{made.load().serial_number:X}"
    with urllib.request.urlopen(scene.url("crl/1.crl"), timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] == "application/pkix-crl"
        text = openssl("crl", "-inform", "DER", "-noout", "-text", "-CAfile", scene.issuer, stdin=answer.read())
    assert "verify OK" in text and f"Serial Number: {serial.zfill(len(serial) + len(serial) % 2)}" in text
    for missing in ("crl/2.crl", "crl/x.crl", "issuers/2.cer"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(scene.url(missing), timeout=PATIENCE)
