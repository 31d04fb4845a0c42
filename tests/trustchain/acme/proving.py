"""An account and an order brought to a state by dns-01, which needs no server."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from control.trustchain.acme import ValidationConfig
from control.trustchain.acme.encoding import encode
from tests.trustchain.acme.rawclient import RawClient, csr
from tests.trustchain.acme.served import LOOPBACK, PATIENCE, Names

NAME = "node-a.stoq.test"


def by_dns(names: Names) -> ValidationConfig:
    """A server that offers dns-01 beside http-01."""
    return ValidationConfig(types=("http-01", "dns-01"), addresses=LOOPBACK, resolver=names, attempts=1)


def wait_for(client: RawClient, url: str, *states: str) -> dict[str, Any]:
    """Read a resource until it is in one of these states."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found: dict[str, Any] = client.post(url).json()
        if found.get("status") in states:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def challenge_of(client: RawClient, authorization: str, kind: str = "dns-01") -> dict[str, Any]:
    """One challenge of an authorization."""
    found: dict[str, Any] = next(one for one in client.post(authorization).json()["challenges"] if one["type"] == kind)
    return found


def prove(client: RawClient, names: Names, authorization: str) -> dict[str, Any]:
    """Publish what dns-01 asks for, have it tried, and wait for the outcome."""
    challenge = challenge_of(client, authorization)
    key_authorization = f"{challenge['token']}.{encode(client.key.thumbprint())}"
    name = client.post(authorization).json()["identifier"]["value"]
    names.records[f"_acme-challenge.{name}"] = [encode(hashlib.sha256(key_authorization.encode()).digest())]
    assert client.post(challenge["url"], {}).status_code == 200
    return wait_for(client, authorization, "valid", "invalid")


def ready_order(client: RawClient, names: Names, *wanted: str) -> tuple[str, dict[str, Any]]:
    """The URL and the object of an order that is ready."""
    made = client.order(*(wanted or (NAME,)))
    assert made.status_code == 201, made.text
    url = made.headers["Location"]
    for authorization in made.json()["authorizations"]:
        assert prove(client, names, authorization)["status"] == "valid"
    return url, wait_for(client, url, "ready")


def valid_order(client: RawClient, names: Names, *wanted: str) -> tuple[str, dict[str, Any]]:
    """The same, with its certificate issued."""
    url, order = ready_order(client, names, *wanted)
    finalized = client.post(order["finalize"], {"csr": csr(*(wanted or (NAME,)))})
    assert finalized.status_code == 200, finalized.text
    return url, wait_for(client, url, "valid")
