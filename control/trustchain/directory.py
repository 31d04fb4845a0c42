"""The directory of an authority: what lies where, how it is made, how an intermediate takes over from another.

    CA/config.json          what was chosen at init, which intermediates there are, which one issues
       root.pem  root.key   the root; its key is needed for intermediates only, and may be moved elsewhere
       root.crl             which intermediates are revoked, signed by the root
       intermediate-N.pem   (and .key, unless it is in a PKCS#11 token)
       ca.db  audit.jsonl   what was issued, and every decision

A key is never overwritten. config.json is replaced as a whole, last: until then a new intermediate does not exist.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from control.trustchain.audit import AuditLog, AuditRecord, Decision, Head
from control.trustchain.certificates import Issuer, Places, make_intermediate, make_root
from control.trustchain.errors import BadRequest, CaError, KeyUnavailable, NotFound
from control.trustchain.journal import Journal
from control.trustchain.keys import (
    Passphrase,
    PublicKey,
    SigningKey,
    check_passphrase,
    generate,
    is_token_key,
    open_key,
    same_key,
    sync_directory,
    write_file,
    write_key,
)
from control.trustchain.profiles import PROFILES, Constraints, ProfileName, check_subject, lifetime
from control.trustchain.revocation import build_crl, check_reason
from control.trustchain.store import Store, serial_bytes
from control.trustchain.submit import LogPolicy

FORMAT = 1
CONFIG, DATABASE, AUDIT = "config.json", "ca.db", "audit.jsonl"
ROOT, ROOT_KEY, ROOT_CRL = "root.pem", "root.key", "root.crl"
ROOT_CRL_LIFETIME_S = 365 * 86400  # The root is offline: a person makes the next one, with the next intermediate.
MAX_INTERMEDIATES = 64
NOWHERE = Places()
MAX_CONFIG_BYTES = 256 * 1024


class IntermediateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One intermediate: its number, and where its key is (a file here, or a pkcs11: URI); when it was revoked (Unix
    seconds; 0: it was not), and why."""

    number: int
    key: str
    revoked_at: float = 0.0
    reason: str = ""


class CaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """config.json. `current` is the number of the intermediate that issues; the URLs go into leaves when they are given."""

    name: str
    current: int
    intermediates: tuple[IntermediateConfig, ...]
    organization: str = ""
    root_key: str = ROOT_KEY
    permitted_dns: tuple[str, ...] = ()
    permitted_ipv6: tuple[str, ...] = ()
    crl_url: str = ""
    ocsp_url: str = ""
    ca_issuers_url: str = ""
    root_crl_url: str = ""
    min_scts: int = 1
    log_timeout_s: float = 10.0
    allow_unlogged: bool = False
    root_crl_number: int = 1
    format: int = FORMAT

    @property
    def constraints(self) -> Constraints:
        """What its intermediates may name. Raises BadRequest."""
        return Constraints.parse(self.permitted_dns, self.permitted_ipv6)

    @property
    def places(self) -> Places:
        """The URLs in leaves."""
        return Places(self.crl_url, self.ocsp_url, self.ca_issuers_url)

    @property
    def policy(self) -> LogPolicy:
        """How leaves are logged."""
        return LogPolicy(self.min_scts, self.log_timeout_s, allow_unlogged=self.allow_unlogged)


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What `init` makes. `permitted_*`: the name constraints. `root_key`, `intermediate_key`: a pkcs11: URI instead of a
    file; the key is made there when there is none. Curves: p256 or p384."""

    name: str = "STOQ TrustChain"
    organization: str = ""
    permitted_dns: tuple[str, ...] = ()
    permitted_ipv6: tuple[str, ...] = ()
    places: Places = NOWHERE
    root_crl_url: str = ""
    root_curve: str = "p256"
    intermediate_curve: str = "p256"
    root_key: str = ROOT_KEY
    intermediate_key: str = ""
    root_lifetime_s: float | None = None
    intermediate_lifetime_s: float | None = None
    min_scts: int = 1
    allow_unlogged: bool = False


def load_config(directory: Path) -> CaConfig:
    """Raises CaError."""
    path = directory / CONFIG
    try:
        data = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
    except FileNotFoundError:
        raise CaError(f"{directory} is no authority's directory ({CONFIG} is missing): `stoq ca init` makes one") from None
    except OSError as error:
        raise CaError(f"cannot read {path}: {error.strerror}") from None
    try:
        config = msgspec.json.decode(data, type=CaConfig)
    except msgspec.MsgspecError as error:
        raise CaError(f"{path} is not as it should be: {error}") from None
    if config.format != FORMAT:
        raise CaError(f"{path} has format {config.format}; this program knows {FORMAT}")
    if not 0 < len(config.intermediates) <= MAX_INTERMEDIATES:
        raise CaError(f"{path} names {len(config.intermediates)} intermediates; 1 to {MAX_INTERMEDIATES} are possible")
    if config.current not in {one.number for one in config.intermediates}:
        raise CaError(f"{path}: intermediate {config.current} is to issue and is not among the intermediates")
    return config


def save_config(directory: Path, config: CaConfig) -> None:
    """Replace config.json as a whole, durably. Raises CaError."""
    path, new = directory / CONFIG, directory / f".{CONFIG}.{os.getpid()}"
    try:
        new.unlink(missing_ok=True)
        write_file(new, msgspec.json.format(msgspec.json.encode(config)) + b"\n", 0o644)
        new.rename(path)
        sync_directory(directory)
    except (OSError, KeyUnavailable) as error:
        raise CaError(f"cannot write {path}: {error}") from None


def load_certificate(path: Path) -> x509.Certificate:
    """One PEM certificate. Raises CaError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise CaError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CaError(f"{path} holds no certificate: {error}") from None


def intermediate_path(directory: Path, number: int) -> Path:
    """Where an intermediate's certificate is."""
    return directory / f"intermediate-{number}.pem"


def load_issuer(
    directory: Path, one: IntermediateConfig, root: x509.Certificate, passphrase: Passphrase | None
) -> Issuer:
    """An intermediate with its key. Raises CaError, KeyUnavailable."""
    path = intermediate_path(directory, one.number)
    certificate = load_certificate(path)
    try:
        certificate.verify_directly_issued_by(root)
    except Exception:
        raise CaError(f"{path} was not issued by {directory / ROOT}") from None
    key = open_key(one.key, directory, passphrase)
    if not same_key(key, certificate):
        raise KeyUnavailable(f"{one.key} is not the key of {path}")
    return Issuer(one.number, certificate, key, (certificate, root), is_token_key(one.key))


def load_root_key(
    directory: Path, config: CaConfig, passphrase: Passphrase | None, where: str | None = None
) -> SigningKey:
    """The root's key; `where`: a file or URI elsewhere. Raises KeyUnavailable that says how to give it."""
    try:
        key = open_key(where or config.root_key, Path() if where else directory, passphrase)
    except KeyUnavailable as error:
        raise KeyUnavailable(f"{error}; this needs the root's key: bring it back, or name it with --root-key") from None
    if not same_key(key, load_certificate(directory / ROOT)):
        raise KeyUnavailable(f"{where or config.root_key} is not the key of {directory / ROOT}")
    return key


def _new_key(directory: Path, where: str, curve: str, passphrase: Passphrase | None, encrypt: bool) -> SigningKey:
    if is_token_key(where):
        from control.trustchain.pkcs11 import make_token_key, open_token_key

        try:
            return open_token_key(where, passphrase)
        except KeyUnavailable:
            return make_token_key(where, curve, passphrase)
    key = generate(curve)
    write_key(directory / where, key, passphrase() if encrypt and passphrase is not None else None)
    return key


def init(
    directory: Path,
    options: InitOptions,
    now: float,
    *,
    actor: str = "init",
    root_passphrase: Passphrase | None = None,
    passphrase: Passphrase | None = None,
) -> CaConfig:
    """Make a root, a first intermediate, and all other files. With passphrases key files are encrypted. Raises
    CaError when the directory is an authority's already, BadRequest and KeyUnavailable."""
    check_subject(f"{options.name} intermediate {MAX_INTERMEDIATES}")
    Constraints.parse(options.permitted_dns, options.permitted_ipv6)
    root_s = lifetime(PROFILES[ProfileName.ROOT], options.root_lifetime_s)
    for ask, where in ((root_passphrase, options.root_key), (passphrase, options.intermediate_key)):
        if ask is not None and not is_token_key(where):  # A mistake is told before there is half an authority.
            check_passphrase(ask())
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = [name for name in (CONFIG, ROOT, ROOT_KEY, DATABASE, AUDIT) if (directory / name).exists()]
    except OSError as error:
        raise CaError(f"cannot make {directory}: {error.strerror}") from None
    if taken:
        raise CaError(f"{directory} holds {', '.join(taken)} already: nothing was overwritten; choose another directory")
    root_key = _new_key(directory, options.root_key, options.root_curve, root_passphrase, encrypt=True)
    root = make_root(
        f"{options.name} root", options.organization, root_key, x509.random_serial_number(), int(now), root_s
    )
    write_file(directory / ROOT, root.public_bytes(Encoding.PEM), 0o644)
    config = CaConfig(
        name=options.name,
        current=1,
        intermediates=(),
        organization=options.organization,
        root_key=options.root_key,
        permitted_dns=options.permitted_dns,
        permitted_ipv6=options.permitted_ipv6,
        crl_url=options.places.crl,
        ocsp_url=options.places.ocsp,
        ca_issuers_url=options.places.ca_issuers,
        root_crl_url=options.root_crl_url,
        min_scts=options.min_scts,
        allow_unlogged=options.allow_unlogged,
    )
    config = add_intermediate(
        directory,
        config,
        root_key,
        now,
        curve=options.intermediate_curve,
        key=options.intermediate_key,
        lifetime_s=options.intermediate_lifetime_s,
        passphrase=passphrase,
    )
    write_root_crl(directory, root, root_key, 1, (), now)
    _begin_records(directory, now, actor, f"root SHA-256 {root.fingerprint(SHA256()).hex()}")
    save_config(directory, config)
    return config


def _begin_records(directory: Path, now: float, actor: str, detail: str) -> None:
    """The database and the audit log, with its first line. An authority never makes them later: one whose records are gone
    does not begin new ones."""
    store = Store.open(directory / DATABASE, create=True)
    try:
        audit = AuditLog.open(directory / AUDIT, Head(), create=True)
        journal = Journal(store, audit, lambda: now)
        journal.commit_now([AuditRecord(actor, "ca.init", Decision.DONE, "", detail)])
        journal.close_now()
        audit.close()
    finally:
        store.close()
    sync_directory(directory)


def add_intermediate(
    directory: Path,
    config: CaConfig,
    root_key: SigningKey,
    now: float,
    *,
    curve: str = "p256",
    key: str = "",
    lifetime_s: float | None = None,
    passphrase: Passphrase | None = None,
) -> CaConfig:
    """Make the next intermediate and its files; the configuration in which it issues, not yet saved. What a crash left of an
    earlier try is passed over. Raises CaError, KeyUnavailable, BadRequest."""
    root = load_certificate(directory / ROOT)
    number = 1 + max((one.number for one in config.intermediates), default=0)
    while intermediate_path(directory, number).exists() or (directory / f"intermediate-{number}.key").exists():
        number += 1
    if len(config.intermediates) >= MAX_INTERMEDIATES:
        raise CaError(f"{MAX_INTERMEDIATES} intermediates, and not more are kept: make a new authority")
    where = key or f"intermediate-{number}.key"
    private = _new_key(directory, where, curve, passphrase, encrypt=True)
    public = private.public_key()
    assert isinstance(public, PublicKey)
    certificate = make_intermediate(
        f"{config.name} intermediate {number}",
        config.organization,
        public,
        root,
        root_key,
        x509.random_serial_number(),
        int(now),
        lifetime(PROFILES[ProfileName.INTERMEDIATE], lifetime_s),
        config.constraints,
        Places(crl=config.root_crl_url),
    )
    write_file(intermediate_path(directory, number), certificate.public_bytes(Encoding.PEM), 0o644)
    intermediates = (*config.intermediates, IntermediateConfig(number, where))
    return msgspec.structs.replace(config, intermediates=intermediates, current=number)


def revoke_intermediate(
    directory: Path, config: CaConfig, number: int, reason: str, root_key: SigningKey, now: float
) -> CaConfig:
    """Put a former intermediate on the root's CRL; the configuration that says so, saved. Raises CaError, NotFound,
    BadRequest."""
    check_reason(reason)
    found = next((one for one in config.intermediates if one.number == number), None)
    if found is None:
        raise NotFound(f"there is no intermediate {number}")
    if number == config.current:
        raise BadRequest(f"intermediate {number} issues: put another in its place first (`stoq ca rotate-intermediate`)")
    if found.revoked_at:
        raise BadRequest(f"intermediate {number} was revoked before")
    revoked = msgspec.structs.replace(found, revoked_at=now, reason=reason)
    config = msgspec.structs.replace(
        config,
        intermediates=tuple(revoked if one.number == number else one for one in config.intermediates),
        root_crl_number=config.root_crl_number + 1,
    )
    entries = []
    for one in config.intermediates:
        if one.revoked_at:
            certificate = load_certificate(intermediate_path(directory, one.number))
            entries.append((serial_bytes(certificate.serial_number), one.revoked_at, one.reason))
    # The number is saved first: it is then never used for two lists.
    save_config(directory, config)
    root = load_certificate(directory / ROOT)
    write_root_crl(directory, root, root_key, config.root_crl_number, tuple(entries), now)
    return config


def write_root_crl(
    directory: Path,
    root: x509.Certificate,
    root_key: SigningKey,
    number: int,
    revoked: tuple[tuple[bytes, float, str], ...],
    now: float,
) -> None:
    """Which intermediates are revoked, PEM. Raises CaError."""
    crl = build_crl(Issuer(0, root, root_key, (root,)), number, revoked, now, ROOT_CRL_LIFETIME_S)
    path, new = directory / ROOT_CRL, directory / f".{ROOT_CRL}.{os.getpid()}"
    try:
        new.unlink(missing_ok=True)
        write_file(new, crl.pem, 0o644)
        new.rename(path)
    except (OSError, KeyUnavailable) as error:
        raise CaError(f"cannot write {path}: {error}") from None
