"""The account that pays for anchors and signs them: a key in a file that nobody else may read.

The file holds either the key itself (64 hexadecimal digits, 0x before them or not) or a keystore in JSON (Web3 Secret
Storage, version 3), whose password comes as an argument.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from control.ctlog.anchor.libraries import Account
from dataplane.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

MAX_FILE_BYTES = 16384


def load_account(path: Path, password: str | None = None) -> LocalAccount:
    """The account of a key file of mode 0600. Raises ConfigError: not readable, readable for others, no key, wrong
    password. Opening a keystore takes as long as its key derivation asks for, often a second."""
    data = _read_private(path)
    if data.lstrip().startswith(b"{"):
        return _open_keystore(path, data, password)
    digits = data.strip().removeprefix(b"0x")
    try:
        key = bytes.fromhex(digits.decode("ascii"))
        if len(key) != 32:
            raise ValueError
        account: LocalAccount = Account.from_key(key)
        return account
    except Exception:  # Whatever the reason: its text could carry the key.
        raise ConfigError(f"{path} holds neither a key of 64 hexadecimal digits nor a keystore in JSON") from None


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path} is no file")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise ConfigError(f"{path} is open to other users: chmod 600 {path}")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the account's key from {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than any key file ({MAX_FILE_BYTES} bytes)")
    return data


def _open_keystore(path: Path, data: bytes, password: str | None) -> LocalAccount:
    if password is None:
        raise ConfigError(f"{path} is a keystore: its password is needed")
    try:
        keystore = msgspec.json.decode(data, type=dict[str, object])
        account: LocalAccount = Account.from_key(Account.decrypt(keystore, password))
        return account
    except Exception as error:  # The library raises what it met: KeyError, TypeError, ValueError, …
        wrong = "MAC mismatch" in str(error)
        why = "the password is wrong" if wrong else f"it is no keystore of version 3 ({type(error).__name__})"
        raise ConfigError(f"cannot open {path}: {why}") from None
