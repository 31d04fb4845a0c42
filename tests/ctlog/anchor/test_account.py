"""Keys in files, and what is said when something is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from control.ctlog.anchor.account import load_account
from control.ctlog.anchor.libraries import Account
from dataplane.errors import ConfigError
from tests.ctlog.anchor import anvil

KEY = anvil.KEYS[0]


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_in_files(tmp_path: Path) -> None:
    address = Account.from_key(KEY).address
    for text in (KEY, f"0x{KEY}\n", KEY.upper()):
        assert load_account(write(tmp_path / "key", text)).address == address
    keystore = json.dumps(Account.encrypt(bytes.fromhex(KEY), "secret", kdf="pbkdf2", iterations=1000))
    path = write(tmp_path / "keystore", keystore)
    assert load_account(path, "secret").address == address
    with pytest.raises(ConfigError, match="its password is needed"):
        load_account(path)
    with pytest.raises(ConfigError, match="password is wrong"):
        load_account(path, "Secret")
    with pytest.raises(ConfigError, match="no keystore of version 3"):
        load_account(write(tmp_path / "keystore", "{}"), "secret")


def test_keys_that_others_can_read_or_that_are_none(tmp_path: Path) -> None:
    for mode in (0o640, 0o604, 0o644):
        with pytest.raises(ConfigError, match="chmod 600"):
            load_account(write(tmp_path / "key", KEY, mode))
    for text in ("", KEY[:-2], KEY + "00", "zz" * 32, "00" * 32, "f" * 64):
        with pytest.raises(ConfigError, match="neither a key") as caught:
            load_account(write(tmp_path / "key", text))
        assert not text or text not in str(caught.value)
    with pytest.raises(ConfigError, match="larger than any"):
        load_account(write(tmp_path / "key", "0" * 20000))
    with pytest.raises(ConfigError, match="cannot read"):
        load_account(tmp_path / "none")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_account(tmp_path)


@pytest.mark.parametrize("library", ["web3", "rlp"])
def test_a_missing_library_is_named_with_what_installs_it(library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "import control.ctlog.anchor\n"
        "from dataplane.errors import StoqError\n"
        "try:\n    import control.ctlog.anchor.anchor, control.ctlog.anchor.fetch\n"
        "except StoqError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=anvil.ROOT, capture_output=True, text=True, check=True)
    assert "pip install 'web3==8.0.0'" in done.stdout and library in done.stdout


def test_the_log_needs_no_library_of_the_chains() -> None:
    code = "import sys, control.ctlog.anchor; print([m for m in sys.modules if m.split('.')[0] in ('web3', 'rlp')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=anvil.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_python_recurses_no_deeper_because_of_a_library() -> None:
    code = (
        "import sys; before = sys.getrecursionlimit()\n"
        "import control.ctlog.anchor.anchor, control.ctlog.anchor.fetch, control.ctlog.anchor.account\n"
        "print(sys.getrecursionlimit() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=anvil.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
