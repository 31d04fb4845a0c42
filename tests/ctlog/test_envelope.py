"""Sealed objects: nothing the storage does to them goes unnoticed, keys rotate, and key files and tokens are strict."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control.ctlog import envelope
from control.ctlog.envelope import (
    KEY_BYTES,
    MAX_SEALS,
    Envelope,
    KeyUnusable,
    LocalKey,
    StorageTampered,
    create_key_file,
    load_key_file,
)
from control.ctlog.errors import LogError, Malformed, Unavailable
from tests.ctlog.seaweed import ROOT

NAME = "log/tile/0/x001/067"
SOFTHSM = [
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
    Path(os.environ.get("SOFTHSM2_MODULE", "/nonexistent")),
]


class Counting:
    """A KMS: counts its calls, and answers wrongly on request."""

    def __init__(self, key_id: str = "kms:key/1") -> None:
        self.key_id = key_id
        self.wraps = self.unwraps = 0
        self.data_keys: set[bytes] = set()
        self.wrap_answer: bytes | None = None
        self.unwrap_answer: bytes | None = None

    def wrap(self, data_key: bytes) -> bytes:
        self.wraps += 1
        assert len(data_key) == KEY_BYTES and data_key not in self.data_keys
        self.data_keys.add(data_key)
        return self.wrap_answer or data_key[::-1]

    def unwrap(self, wrapped: bytes) -> bytes:
        self.unwraps += 1
        return self.unwrap_answer if self.unwrap_answer is not None else wrapped[::-1]


@pytest.mark.parametrize("size", [0, 1, 300, 1 << 20])
def test_seals_and_opens(size: int) -> None:
    box = Envelope(LocalKey(os.urandom(32)))
    data = os.urandom(size)
    sealed = box.seal(NAME, data)
    assert box.open(NAME, sealed) == data
    assert len(sealed) - size < 200
    assert size < 16 or data[:16] not in sealed


def test_every_flipped_bit_is_found() -> None:
    key = LocalKey(os.urandom(32))
    sealed = Envelope(key).seal(NAME, b"some bytes of a tile")
    for bit in range(8 * len(sealed)):
        altered = bytearray(sealed)
        altered[bit // 8] ^= 1 << (bit % 8)
        box = Envelope(key)  # a fresh one has to unwrap too
        with pytest.raises(StorageTampered) as caught:
            box.open(NAME, bytes(altered))
        assert isinstance(caught.value, Malformed) and NAME in str(caught.value)


def test_every_cut_and_anything_appended_is_found() -> None:
    box = Envelope(LocalKey(os.urandom(32)))
    sealed = box.seal(NAME, b"some bytes of a tile")
    for length in range(len(sealed)):
        with pytest.raises(StorageTampered):
            box.open(NAME, sealed[:length])
    with pytest.raises(StorageTampered):
        box.open(NAME, sealed + b"\x00")
    with pytest.raises(StorageTampered, match="not a sealed object"):
        box.open(NAME, b"a checkpoint\nwithout any envelope around it\n")


def test_an_object_opens_under_its_own_name_only() -> None:
    box = Envelope(LocalKey(os.urandom(32)))
    one, two = box.seal("a/one", b"1"), box.seal("a/two", b"2")
    for name, sealed in (("a/one", two), ("a/two", one), ("a/on", one), ("b/one", one), ("", one)):
        with pytest.raises(StorageTampered, match="another object is in its place"):
            box.open(name, sealed)


def test_parts_of_two_objects_do_not_combine() -> None:
    key = LocalKey(os.urandom(32))
    one, two = Envelope(key).seal(NAME, b"1" * 40), Envelope(key).seal(NAME, b"2" * 40)
    assert len(one) == len(two)
    box = Envelope(key)
    for at in range(4, len(one)):
        mixed = one[:at] + two[at:]
        if mixed not in (one, two):
            with pytest.raises(StorageTampered):
                box.open(NAME, mixed)


def test_keys_rotate() -> None:
    old, new = LocalKey(os.urandom(32)), LocalKey(os.urandom(32))
    before = Envelope(old).seal(NAME, b"old")
    both = Envelope(new, [old])
    after = both.seal(NAME, b"new")
    assert both.open(NAME, before) == b"old" and both.open(NAME, after) == b"new"
    assert Envelope(new).open(NAME, after) == b"new"
    with pytest.raises(StorageTampered, match=f"{old.key_id}.*give that key"):
        Envelope(new).open(NAME, before)
    with pytest.raises(KeyUnusable, match="two key"):
        Envelope(new, [old, LocalKey(b"k" * 32), old])


def test_another_key_under_the_same_id_is_refused() -> None:
    class Renamed(LocalKey):
        __slots__ = ()

        @property
        def key_id(self) -> str:
            return "same"

    sealed = Envelope(Renamed(os.urandom(32))).seal(NAME, b"x")
    with pytest.raises(StorageTampered, match="not wrapped under"):
        Envelope(Renamed(os.urandom(32))).open(NAME, sealed)


def test_a_data_key_is_used_a_bounded_number_of_times_and_wrapped_once() -> None:
    kms = Counting()
    box = Envelope(kms, max_seals=10)
    sealed = [box.seal(NAME, bytes([number])) for number in range(35)]
    assert kms.wraps == 4
    nonces = [one[4 + 1 + 1 + len(kms.key_id) + 2 + 32 :][:12] for one in sealed]
    assert (
        len(set(nonces)) == 35
        and len({one[: one.index(nonce)] for one, nonce in zip(sealed, nonces, strict=True)}) == 4
    )
    assert [box.open(NAME, one) for one in sealed] == [bytes([number]) for number in range(35)]
    assert kms.unwraps == 0  # what we sealed ourselves costs no call
    reader = Envelope(kms)
    for one in sealed:
        reader.open(NAME, one)
    assert kms.unwraps == 4
    for wrong in (0, MAX_SEALS + 1):
        with pytest.raises(KeyUnusable, match="seals between"):
            Envelope(kms, max_seals=wrong)


def test_opened_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "MAX_OPENED_KEYS", 2)
    kms = Counting()
    writer = Envelope(kms, max_seals=1)
    sealed = [writer.seal(NAME, b"x") for _ in range(3)]
    reader = Envelope(kms)
    for one in (*sealed, sealed[2], sealed[1], sealed[0]):
        reader.open(NAME, one)
    assert kms.unwraps == 4


def test_a_kms_that_misbehaves() -> None:
    kms = Counting()
    sealed = Envelope(kms).seal(NAME, b"x")
    kms.unwrap_answer = b"short"
    with pytest.raises(StorageTampered, match="unwraps 5 bytes"):
        Envelope(kms).open(NAME, sealed)
    kms.wrap_answer = bytes(7000)
    with pytest.raises(KeyUnusable, match="7000"):
        Envelope(kms).seal(NAME, b"x")
    with pytest.raises(KeyUnusable, match="no id"):
        Envelope(Counting("spaces and\nlines"))

    class Down(Counting):
        def wrap(self, data_key: bytes) -> bytes:
            raise Unavailable("the KMS is away")

    with pytest.raises(Unavailable, match="away"):
        Envelope(Down()).seal(NAME, b"x")


def test_threads_share_one_envelope() -> None:
    kms = Counting()
    box = Envelope(kms, max_seals=50)

    def work(number: int) -> bool:
        name = f"object/{number}"
        return box.open(name, box.seal(name, str(number).encode())) == str(number).encode()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(1000)))
    assert kms.wraps == 20


def test_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "MAX_OBJECT_BYTES", 100)
    monkeypatch.setattr(envelope, "MAX_SEALED_BYTES", 300)
    box = Envelope(LocalKey(bytes(32)))
    with pytest.raises(Malformed, match="at most 100"):
        box.seal(NAME, bytes(101))
    with pytest.raises(StorageTampered, match="301 bytes are more"):
        box.open(NAME, bytes(301))


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    made = create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == KEY_BYTES
    loaded = load_key_file(path)
    assert loaded.key_id == made.key_id
    assert Envelope(loaded).open(NAME, Envelope(made).seal(NAME, b"x")) == b"x"
    before = path.read_bytes()
    with pytest.raises(KeyUnusable, match="never overwritten"):
        create_key_file(path)
    assert path.read_bytes() == before


def test_bad_key_files(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    with pytest.raises(KeyUnusable, match="cannot be read"):
        load_key_file(path)
    with pytest.raises(KeyUnusable, match="cannot be written"):
        create_key_file(tmp_path / "no" / "kek")
    create_key_file(path)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(KeyUnusable, match="chmod 600"):
            load_key_file(path)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for wrong in ("link", "pipe"):
        with pytest.raises(KeyUnusable):
            load_key_file(tmp_path / wrong)
    for size in (0, 31, 33):
        path.write_bytes(bytes(size))
        with pytest.raises(KeyUnusable, match="32 bytes"):
            load_key_file(path)
    with pytest.raises(LogError):
        LocalKey(b"short")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(KeyUnusable, match="pip install python-pkcs11"):
        envelope.TokenKey("/nonexistent.so", "token", "1234", "kek")


TOKEN = """
import sys
import pkcs11
from control.ctlog.envelope import Envelope, KeyUnusable, StorageTampered, TokenKey

module = sys.argv[1]
slot = pkcs11.lib(module).get_slots()[0]
try:
    TokenKey(module, "nowhere", "1234", "kek")
    raise SystemExit("found a token that is not there")
except KeyUnusable as error:
    assert "nowhere" in str(error) and "1234" not in str(error), error
for pin, label in (("9999", "kek"), ("1234", "missing")):
    try:
        TokenKey(module, "stoq", pin, label)
        raise SystemExit(f"opened {label} with {pin}")
    except KeyUnusable as error:
        assert pin not in str(error), error
with TokenKey(module, "stoq", "1234", "kek", create=True) as key:
    assert key.key_id == "pkcs11:kek"
    sealed = Envelope(key).seal("a", b"in a token")
    with TokenKey(module, "stoq", "1234", "kek") as again:  # a second session, logged in already
        assert Envelope(again).open("a", sealed) == b"in a token"
    for at in range(len(sealed)):
        altered = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        try:
            Envelope(key).open("a", altered)
            raise SystemExit(f"byte {at} may be altered")
        except StorageTampered:
            pass
with TokenKey(module, "stoq", "1234", "kek") as key:
    assert Envelope(key).open("a", sealed) == b"in a token"
print("done")
"""


def test_a_key_in_a_token(tmp_path: Path) -> None:
    module = next((path for path in SOFTHSM if path.exists()), None)
    if module is None:
        pytest.skip("no SoftHSM here: apt install softhsm2, or name its library in SOFTHSM2_MODULE")
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    env = {**os.environ, "SOFTHSM2_CONF": str(config)}
    tool = module.parents[2] / "bin" / "softhsm2-util"
    tool = tool if tool.exists() else module.parents[3] / "bin" / "softhsm2-util"
    argv = [str(tool), "--module", str(module), "--init-token", "--free"]
    subprocess.run(
        [*argv, "--label", "stoq", "--pin", "1234", "--so-pin", "12345678"],
        env=env, check=True, timeout=20, capture_output=True,
    )  # fmt: skip
    # In a process of its own: the library reads its configuration once, and other tests load it too.
    done = subprocess.run(
        [sys.executable, "-c", TOKEN, str(module)], env=env, cwd=ROOT, timeout=30, capture_output=True, text=True
    )
    assert done.stdout.strip() == "done", done.stdout + done.stderr
