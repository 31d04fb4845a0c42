"""certbot itself: a certificate by its standalone plugin over IPv6, renewed and revoked; registration by EAB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from control.trustchain.acme import ValidationConfig
from control.trustchain.acme.encoding import encode
from control.trustchain.roles import Role, roles_of
from tests.trustchain.acme.behind import authority_served
from tests.trustchain.acme.proving import NAME
from tests.trustchain.acme.served import LOOPBACK, Names, Server, World, free_port

PATIENCE = 60.0
NAMES = Names({NAME: ["::1"]})
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Certbot:
    """certbot with all its directories in one place."""

    def __init__(self, server: Server, world: World, port: int) -> None:
        self.home = world.directory / "certbot"
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.environment = inherited | {"REQUESTS_CA_BUNDLE": str(world.root)}
        self.common = [
            *("--server", server.directory, "--non-interactive"),
            *("--config-dir", str(self.home / "config"), "--work-dir", str(self.home / "work")),
            *("--logs-dir", str(self.home / "logs")),
        ]
        self.standalone = ["--standalone", "--http-01-port", str(port), "--http-01-address", "::1"]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DIES_WITH_US, str(Path(sys.executable).with_name("certbot")), *args, *self.common],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def leaf(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.home / "config/live" / name / "cert.pem").read_bytes())


@pytest.mark.slow
def test_certonly_renew_revoke(world: World) -> None:
    port = free_port()
    validation = ValidationConfig(addresses=LOOPBACK, resolver=NAMES, http_port=port, attempts=1)
    with authority_served(world, validation) as (authority, server):
        certbot = Certbot(server, world, port)
        made = certbot.run(
            *("certonly", "-d", NAME, "--ip-address", "::1", "--cert-name", "node-a"),
            *("--agree-tos", "-m", "ops@stoq.test", "--no-eff-email", *certbot.standalone),
        )
        assert made.returncode == 0, made.stdout + made.stderr
        first = certbot.leaf("node-a")
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert sorted(str(name.value) for name in names) == ["::1", NAME]
        assert roles_of(first) == {Role.SERVICE}
        chain = x509.load_pem_x509_certificates((certbot.home / "config/live/node-a/fullchain.pem").read_bytes())
        PolicyBuilder().store(Store([authority.root])).build_server_verifier(x509.DNSName(NAME)).verify(
            chain[0], chain[1:]
        )

        renewed = certbot.run("renew", "--force-renewal", "--no-random-sleep-on-renew")
        assert renewed.returncode == 0, renewed.stdout + renewed.stderr
        second = certbot.leaf("node-a")
        assert second.serial_number != first.serial_number

        revoked = certbot.run("revoke", "--cert-name", "node-a", "--reason", "keycompromise", "--delete-after-revoke")
        assert revoked.returncode == 0, revoked.stdout + revoked.stderr
        crl = x509.load_der_x509_crl(server.call(authority.crl()).der)
        assert [entry.serial_number for entry in crl] == [second.serial_number]


@pytest.mark.slow
def test_external_account(world: World) -> None:
    with world.serve(external_account_required=True) as server:
        certbot = Certbot(server, world, 0)
        register = ("register", "--agree-tos", "-m", "ops@stoq.test", "--no-eff-email")
        without = certbot.run(*register)
        assert without.returncode != 0 and "externalAccountRequired" in without.stdout + without.stderr + certbot_log(
            certbot
        )
        secret = os.urandom(32)
        server.call(server.store.add_external_account("node-a", secret, server.clock() + 3600))
        good = certbot.run(*register, "--eab-kid", "node-a", "--eab-hmac-key", encode(secret))
        assert good.returncode == 0, good.stdout + good.stderr
        assert server.call(server.store.external_secret("node-a")) is None


def certbot_log(certbot: Certbot) -> str:
    return "".join(path.read_text() for path in (certbot.home / "logs").glob("*.log*"))
