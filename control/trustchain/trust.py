"""The authority's side of trust: makes the bundle that nodes judge by, anew whenever something in it changes, and tells
who follows.

      CA/trust.json     what an operator decides: how many SCTs, inclusion proofs, pins, roles, further logs
      CA/bundle.json    the bundle as it was made last; its generation only grows

A bundle is made anew when a certificate is revoked, when trust.json or a log changes, and well before it goes stale.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from control.trustchain.authority import Authority
from control.trustchain.bundle import (
    BundleError,
    InclusionPolicy,
    LogRecord,
    PinRecord,
    RequiredRoles,
    RevocationRecord,
    TrustBundle,
    anchors_of,
    load_bundle,
    save_bundle,
)
from control.trustchain.errors import CaError
from control.trustchain.revocation import CRL_GRACE_S

log = logging.getLogger("stoq.trustchain")

TRUST, BUNDLE = "trust.json", "bundle.json"
CHECK_SECONDS = 30.0  # trust.json is looked at again.
MAX_TRUST_BYTES = 1 << 20


class TrustConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`trust.json`. `scts_required` None: one, when a log is known. `logs`: those that are known besides the authority's
    own, for example retired ones. `valid_s`: seconds after which a node that hears nothing refuses peers (`hard_stale`)
    or goes on with what it knew."""

    scts_required: int | None = None
    inclusion: InclusionPolicy = InclusionPolicy()
    pins: dict[str, PinRecord] = {}
    required_roles: RequiredRoles = RequiredRoles()
    logs: tuple[LogRecord, ...] = ()
    valid_s: float = 7 * 86400
    hard_stale: bool = False


def load_trust_config(path: Path) -> TrustConfig:
    """What trust.json says; without one the defaults. Raises CaError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return TrustConfig()
    except OSError as error:
        raise CaError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_TRUST_BYTES:
        raise CaError(f"{path} has {len(data)} bytes; {MAX_TRUST_BYTES} are taken")
    try:
        return msgspec.json.decode(data, type=TrustConfig)
    except msgspec.MsgspecError as error:
        raise CaError(f"{path} is not as it should be: {error}") from None


class TrustMaker:
    """See the module's text. `own_logs`: the logs that the authority submits to. Raises CaError, BundleError."""

    def __init__(
        self, authority: Authority, own_logs: Sequence[LogRecord], clock: Callable[[], float]
    ) -> None:
        self._authority = authority
        self._own_logs = tuple(own_logs)
        self._clock = clock
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[TrustBundle], None]] = []
        path = authority.directory / BUNDLE
        self.bundle = load_bundle(path) if path.exists() else self._make(1)
        self.followers = 0
        if not self.refresh():
            save_bundle(path, self.bundle)

    def on_change(self, listener: Callable[[TrustBundle], None]) -> None:
        """Is called with each new bundle, before who follows hears of it."""
        self._listeners.append(listener)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)

    def _revocations(self) -> tuple[RevocationRecord, ...]:
        """Those that still matter: of certificates that have not ended."""
        earliest, after = self._clock() - CRL_GRACE_S, 0
        found: list[RevocationRecord] = []
        while page := self._authority.revocations(after):
            after = page[-1].number
            found += [
                RevocationRecord(
                    at=datetime.datetime.fromtimestamp(one.revoked_at, datetime.UTC),
                    reason=one.reason,
                    issuer_key_hash=one.issuer_key_hash,
                    serial=f"{one.serial:x}",
                )
                for one in page
                if one.not_after > earliest
            ]
        return tuple(found)

    def _make(self, generation: int) -> TrustBundle:
        config = load_trust_config(self._authority.directory / TRUST)
        now = self._now()
        own = {one.key for one in self._own_logs}
        logs = (*self._own_logs, *(one for one in config.logs if one.key not in own))
        required = config.scts_required if config.scts_required is not None else min(1, len(logs))
        return TrustBundle(
            generation=generation,
            issued_at=now,
            valid_until=now + datetime.timedelta(seconds=config.valid_s),
            anchors=anchors_of([self._authority.root]),
            logs=logs,
            pins=config.pins,
            scts_required=required,
            inclusion=config.inclusion,
            required_roles=config.required_roles,
            revocations=self._revocations(),
            hard_stale=config.hard_stale,
        )

    def refresh(self) -> bool:
        """Make the bundle anew if it would say something else, or is half way to its end. Raises CaError,
        BundleError."""
        old = self.bundle
        new = self._make(old.generation + 1)
        same = msgspec.structs.replace(
            new, generation=old.generation, issued_at=old.issued_at, valid_until=old.valid_until
        )
        if same == old and self._now() < old.issued_at + (old.valid_until - old.issued_at) / 2:
            return False
        save_bundle(self._authority.directory / BUNDLE, new)
        self.bundle = new
        for listener in self._listeners:
            listener(new)
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def run(self) -> None:
        """Keep it true until cancelled."""
        with self._authority.subscribe() as events:
            waiting = asyncio.ensure_future(anext(events))
            try:
                while True:
                    await asyncio.wait({waiting}, timeout=CHECK_SECONDS)
                    if waiting.done():
                        waiting.result()
                        waiting = asyncio.ensure_future(anext(events))
                    try:
                        self.refresh()
                    except (CaError, BundleError) as error:
                        log.error("the trust bundle stays as it is: %s", error)
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    async def follow(self, generation: int) -> AsyncIterator[TrustBundle]:
        """Bundles from now on; at once when there is a newer one than `generation`."""
        self.followers += 1
        try:
            while True:
                changed = self._changed
                if self.bundle.generation > generation:
                    generation = self.bundle.generation
                    yield self.bundle
                else:
                    await changed.wait()
        finally:
            self.followers -= 1

