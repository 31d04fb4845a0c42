"""Pins: their form, and what a set needs."""

from __future__ import annotations

import base64
import hashlib

import pytest

from control.trustchain.pins import MAX_PINS, PinError, PinSet, format_pin, parse_pin, peer_name

ONE, TWO = hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()


def test_there_and_back() -> None:
    assert format_pin(ONE) == "sha256/" + base64.b64encode(ONE).decode()
    assert parse_pin(format_pin(ONE)) == ONE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256/",
        format_pin(ONE)[7:],
        format_pin(ONE).replace("sha256", "sha1"),
        format_pin(ONE)[:-1],
        format_pin(ONE) + "=",
        format_pin(ONE) + "\n",
        format_pin(ONE[:31]),
        format_pin(ONE + b"x"),
        "sha256/" + "%" * 44,
        # The same 32 bytes written with bits that base64 throws away.
        format_pin(bytes(32)).replace("A=", "B="),
    ],
)
def test_what_is_no_pin(text: str) -> None:
    with pytest.raises(PinError, match="is no pin"):
        parse_pin(text)


def test_a_set_needs_a_backup() -> None:
    with pytest.raises(PinError, match="needs a backup"):
        PinSet.parse([format_pin(ONE)])
    with pytest.raises(PinError, match="needs a backup"):
        PinSet.parse([format_pin(ONE), format_pin(ONE)])
    assert PinSet.parse([format_pin(ONE)], allow_single=True).matches([ONE])
    with pytest.raises(PinError, match="without a pin"):
        PinSet.parse([], allow_single=True)
    with pytest.raises(PinError, match=f"{MAX_PINS} are taken"):
        PinSet.parse(format_pin(hashlib.sha256(bytes([n])).digest()) for n in range(MAX_PINS + 1))


def test_any_key_of_the_path_and_any_pin_will_do() -> None:
    pins = PinSet.parse([format_pin(ONE), format_pin(TWO)])
    assert pins.matches([bytes(32), TWO]) and pins.matches([ONE])
    assert not pins.matches([bytes(32)]) and not pins.matches([])


def test_one_name_is_written_one_way() -> None:
    assert peer_name("Node-A.Example.") == "node-a.example"
    assert peer_name("2001:DB8:0:0::1") == peer_name("2001:db8::1") == "2001:db8::1"
