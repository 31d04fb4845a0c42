"""CRLs and OCSP answers, judged by OpenSSL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from control.trustchain.authority import Authority, Issued
from control.trustchain.directory import load_root_key
from control.trustchain.errors import BadRequest, NotFound
from control.trustchain.keys import generate, spki_sha256
from control.trustchain.requests import RenewRequest, make_csr
from control.trustchain.revocation import REASONS
from tests.trustchain.conftest import ADMIN, Ca, openssl


def _issue(ca: Ca, *names: str) -> list[Issued]:
    async def main(authority: Authority) -> list[Issued]:
        return [await authority.issue(ca.request(name), ADMIN) for name in names]

    issued: list[Issued] = ca.run(main)
    return issued


def _write(tmp_path: Path, ca: Ca, issued: Issued, name: str) -> Path:
    (tmp_path / "intermediate.pem").write_bytes(issued.chain[0].public_bytes(Encoding.PEM))
    path = tmp_path / f"{name}.pem"
    path.write_bytes(issued.certificate.public_bytes(Encoding.PEM))
    return path


def test_openssl_reads_the_crl(ca: Ca, tmp_path: Path) -> None:
    good, bad = _issue(ca, "good.stoq.example", "bad.stoq.example")

    async def revoke(authority: Authority) -> None:
        await authority.revoke(bad.row.serial.hex(), "keyCompromise", ADMIN)
        (tmp_path / "ca.crl").write_bytes((await authority.crl()).pem)

    ca.run(revoke)
    text = openssl("crl", "-in", tmp_path / "ca.crl", "-noout", "-text", "-CAfile", ca.directory / "intermediate-1.pem")
    assert "verify OK" in text and "Key Compromise" in text and f"{bad.certificate.serial_number:040X}" in text
    crls = tmp_path / "all.pem"
    crls.write_bytes((tmp_path / "ca.crl").read_bytes() + (ca.directory / "root.crl").read_bytes())
    chain = ["-CAfile", ca.directory / "root.pem", "-untrusted", ca.directory / "intermediate-1.pem", "-CRLfile", crls]
    openssl("verify", "-crl_check_all", *chain, _write(tmp_path, ca, good, "good"))
    refused = openssl("verify", "-crl_check_all", *chain, _write(tmp_path, ca, bad, "bad"), code=2)
    assert "certificate revoked" in refused


def test_when_a_crl_is_made_anew(ca: Ca) -> None:
    issued = _issue(ca, "a.stoq.example", "b.stoq.example")

    async def main(authority: Authority) -> None:
        first = await authority.crl()
        assert await authority.crl() is first
        ca.clock.now += 11 * 3600
        assert await authority.crl() is first
        ca.clock.now += 3600
        second = await authority.crl()
        assert (first.number, second.number) == (1, 2)
        await authority.revoke("a.stoq.example", "unspecified", ADMIN)
        third, again = await asyncio.gather(authority.crl(), authority.crl())
        assert third is again and third.number == 3
        with pytest.raises(NotFound, match="intermediate 7"):
            await authority.crl(7)

    ca.run(main)

    async def later(authority: Authority) -> None:
        crl = await authority.crl()
        assert crl.number == 4  # Numbers never begin anew.
        parsed = x509.load_der_x509_crl(crl.der)
        assert [one.serial_number for one in parsed] == [issued[0].certificate.serial_number]
        ca.clock.now += 59 * 3600  # It expired 47 hours ago, but lists overlap.
        assert len(list(x509.load_der_x509_crl((await authority.crl()).der))) == 1
        ca.clock.now += 13 * 3600
        assert len(list(x509.load_der_x509_crl((await authority.crl()).der))) == 0

    ca.run(later)


def test_former_intermediates_go_on_signing(ca: Ca) -> None:
    (old,) = _issue(ca, "old.stoq.example")

    async def main(authority: Authority) -> None:
        await authority.rotate_intermediate(load_root_key(ca.directory, authority.config, None), ADMIN)
        await authority.revoke("old.stoq.example", "superseded", ADMIN)
        old_list, new_list = x509.load_der_x509_crl((await authority.crl(1)).der), await authority.crl()
        assert old_list.get_revoked_certificate_by_serial_number(old.certificate.serial_number) is not None
        assert len(list(x509.load_der_x509_crl(new_list.der))) == 0
        for one, parsed in zip(authority.issuers, (old_list, x509.load_der_x509_crl(new_list.der)), strict=True):
            assert parsed.issuer == one.certificate.subject
            assert parsed.is_signature_valid(one.certificate.public_key())  # type: ignore[arg-type]
        request = ocsp.OCSPRequestBuilder().add_certificate(old.certificate, old.chain[0], SHA256()).build()
        answer = ocsp.load_der_ocsp_response(await authority.ocsp(request.public_bytes(Encoding.DER)))
        assert answer.certificate_status is ocsp.OCSPCertStatus.REVOKED

    ca.run(main)


def test_a_former_intermediate_is_revoked_by_the_root(ca: Ca, tmp_path: Path) -> None:
    (old,) = _issue(ca, "old.stoq.example")

    async def main(authority: Authority) -> None:
        root_key = load_root_key(ca.directory, authority.config, None)
        with pytest.raises(BadRequest, match="rotate-intermediate"):
            await authority.revoke_intermediate(1, "keyCompromise", root_key, ADMIN)
        await authority.rotate_intermediate(root_key, ADMIN)
        (tmp_path / "lists.pem").write_bytes((await authority.crl(1)).pem + authority.root_crl())
        with pytest.raises(NotFound):
            await authority.revoke_intermediate(7, "keyCompromise", root_key, ADMIN)
        await authority.revoke_intermediate(1, "keyCompromise", root_key, ADMIN)
        with pytest.raises(BadRequest, match="revoked before"):
            await authority.revoke_intermediate(1, "keyCompromise", root_key, ADMIN)
        (tmp_path / "later.pem").write_bytes((await authority.crl(1)).pem + authority.root_crl())

    ca.run(main)
    assert x509.load_pem_x509_crl((ca.directory / "root.crl").read_bytes()).extensions[0].value == x509.CRLNumber(2)
    chain = ["-CAfile", ca.directory / "root.pem", "-untrusted", ca.directory / "intermediate-1.pem"]
    leaf = _write(tmp_path, ca, old, "old")
    openssl("verify", "-crl_check_all", "-CRLfile", tmp_path / "lists.pem", *chain, leaf)
    refused = openssl("verify", "-crl_check_all", "-CRLfile", tmp_path / "later.pem", *chain, leaf, code=2)
    assert "error 23 at 1 depth lookup: certificate revoked" in refused
    ca.open().close_now()  # Its configuration is read again.


def test_openssl_reads_the_ocsp_answers(ca: Ca, tmp_path: Path) -> None:
    good, bad = _issue(ca, "good.stoq.example", "bad.stoq.example")
    paths = [_write(tmp_path, ca, one, name) for one, name in ((good, "good"), (bad, "bad"))]
    issuer = tmp_path / "intermediate.pem"
    for path in paths:
        openssl("ocsp", "-issuer", issuer, "-cert", path, "-reqout", path.with_suffix(".req"))
    openssl("ocsp", "-issuer", issuer, "-serial", "0x1234", "-reqout", tmp_path / "unknown.req", "-no_nonce")

    async def main(authority: Authority) -> None:
        await authority.revoke(bad.row.serial.hex(), "keyCompromise", ADMIN)
        for name in ("good", "bad", "unknown"):
            answer = await authority.ocsp((tmp_path / f"{name}.req").read_bytes())
            (tmp_path / f"{name}.rsp").write_bytes(answer)

    ca.run(main)
    common = ["-issuer", issuer, "-CAfile", ca.directory / "root.pem"]
    # With -reqin OpenSSL compares the nonce, with -cert it says what became of the certificate.
    for name, says in (("good", "good"), ("bad", "revoked")):
        answer_file = ["-respin", tmp_path / f"{name}.rsp"]
        said = openssl("ocsp", *common, "-reqin", tmp_path / f"{name}.req", *answer_file)
        assert "Response verify OK" in said and "nonce" not in said.lower()
        said = openssl("ocsp", *common, "-no_nonce", "-cert", tmp_path / f"{name}.pem", *answer_file)
        assert "Response verify OK" in said and f"{name}.pem: {says}" in said
    assert "keyCompromise" in said
    answer = ocsp.load_der_ocsp_response((tmp_path / "unknown.rsp").read_bytes())
    assert answer.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    said = openssl("ocsp", *common, "-no_nonce", "-serial", "0x1234", "-respin", tmp_path / "unknown.rsp")
    assert "0x1234: unknown" in said and "Response verify OK" in said


def test_odd_ocsp_requests(ca: Ca) -> None:
    (issued,) = _issue(ca, "a.stoq.example")
    leaf, issuer = issued.certificate, issued.chain[0]

    async def main(authority: Authority) -> None:
        async def ask(request: bytes) -> ocsp.OCSPResponse:
            return ocsp.load_der_ocsp_response(await authority.ocsp(request))

        def built(algorithm: SHA1 | SHA256 | SHA384, nonce: bytes | None = None) -> bytes:
            builder = ocsp.OCSPRequestBuilder().add_certificate(leaf, issuer, algorithm)
            if nonce is not None:
                builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
            return builder.build().public_bytes(Encoding.DER)

        for algorithm in (SHA1(), SHA256(), SHA384()):
            answer = await ask(built(algorithm))
            assert answer.certificate_status is ocsp.OCSPCertStatus.GOOD
            assert answer.next_update_utc is not None
            assert answer.next_update_utc.timestamp() == ca.clock() + 3600
        answer = await ask(built(SHA256(), b"n" * 32))
        assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32
        malformed = ocsp.OCSPResponseStatus.MALFORMED_REQUEST
        good = built(SHA256())
        for request in (b"", b"\x30\x00", good[:-1], b"\0" * 5000, built(SHA256(), b"n" * 129)):
            assert (await ask(request)).response_status is malformed
        for at in range(len(good)):
            await ask(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])  # Whatever it is, it is answered.
        stranger = ocsp.OCSPRequestBuilder().add_certificate(leaf, leaf, SHA256()).build()
        unauthorized = await ask(stranger.public_bytes(Encoding.DER))
        assert unauthorized.response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED

    ca.run(main)


def test_reasons_are_those_of_the_rfc() -> None:
    assert set(REASONS) == {
        "unspecified",
        "keyCompromise",
        "cACompromise",
        "affiliationChanged",
        "superseded",
        "cessationOfOperation",
        "privilegeWithdrawn",
    }


@pytest.mark.parametrize("reason", ["keyCompromise", "unspecified", "superseded"])
def test_a_line_of_renewals_is_revoked_together(ca: Ca, reason: str) -> None:
    """The certificate before the newest is as good as it until it ends; who is not trusted any more must not have it."""
    (first,) = _issue(ca, "a.stoq.example")

    async def main(authority: Authority) -> None:
        request = RenewRequest(make_csr(generate()), first.row.fingerprint)
        second = await authority.renew(request, ADMIN)
        other = await authority.issue(ca.request("b.stoq.example"), ADMIN)
        with authority.subscribe() as events:
            await authority.revoke("a.stoq.example", reason, ADMIN)
            told = [await anext(events)]
            if reason != "superseded":
                told.append(await anext(events))
        assert told[0].fingerprint == second.row.fingerprint
        revoked = {event.serial for event in authority.revocations()}
        both = {first.certificate.serial_number, second.certificate.serial_number}
        assert revoked == (both if reason != "superseded" else {second.certificate.serial_number})
        assert other.certificate.serial_number not in revoked
        listed = {one.serial_number for one in x509.load_der_x509_crl((await authority.crl()).der)}
        assert listed == revoked

    ca.run(main)


def test_a_revoked_intermediate_is_told(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        assert authority.revoked_intermediates() == []
        root_key = load_root_key(ca.directory, authority.config, None)
        old = authority.issuer.certificate
        await authority.rotate_intermediate(root_key, ADMIN)
        with authority.subscribe() as events:
            await authority.revoke_intermediate(1, "cACompromise", root_key, ADMIN)
            event = await anext(events)
        assert event.serial == old.serial_number and event.issuer_key_hash == spki_sha256(authority.root)
        assert authority.revoked_intermediates() == [event] and authority.revocations() == []

    ca.run(main)
