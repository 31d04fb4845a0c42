"""The authority's side of trust: makes the bundle that nodes judge by, anew whenever something in it changes, and tells
who follows.

      CA/trust.json     what an operator decides: how many SCTs, inclusion proofs, pins, roles, further logs
      CA/bundle.json    the bundle as it was made last; its generation only grows

A bundle is made anew when a certificate is revoked, when trust.json or a log changes, and well before it goes stale. Its
generation is the second in which it was made, or the next number: so nodes take it for newer also when bundle.json was
lost, or set back with a backup.

A log with a new key is announced first: name it in trust.json's `logs`, and submit to the former one, too, for as long as
a certificate lives. A node that has not heard of a log cannot judge the authority, whose own certificate is in it. Rules by
which nodes would refuse the authority itself are not given out (`guard`): nobody could take them back.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
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
from control.trustchain.errors import CaError, SubscriptionOverrun, TrustError
from control.trustchain.revocation import CRL_GRACE_S

log = logging.getLogger("stoq.trustchain")

TRUST, BUNDLE = "trust.json", "bundle.json"
CHECK_SECONDS = 30.0  # trust.json is looked at again.
MAX_TRUST_BYTES = 1 << 20
MAX_VALID_S = 10 * 365 * 86400.0
REST = 4  # Times as long as making a bundle took: so a storm of revocations leaves the loop to others …
LONGEST_REST = 1.0  # … and each is still pushed within seconds.


class TrustConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`trust.json`. `scts_required` None: one, when a log is known. `logs`: those that are known besides the authority's
    own, for example retired ones. `revocations`: those that are not in the authority's store: an intermediate's, by
    issuer and serial number, or by `key_hash`. `valid_s`: seconds after which a node that hears nothing refuses peers
    (`hard_stale`) or goes on with what it knew."""

    scts_required: int | None = None
    inclusion: InclusionPolicy = InclusionPolicy()
    pins: dict[str, PinRecord] = {}
    required_roles: RequiredRoles = RequiredRoles()
    logs: tuple[LogRecord, ...] = ()
    revocations: tuple[RevocationRecord, ...] = ()
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
        config = msgspec.json.decode(data, type=TrustConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CaError(f"{path} is not as it should be: {error}") from None
    if not CHECK_SECONDS <= config.valid_s <= MAX_VALID_S:
        raise CaError(f"{path}: valid_s is {CHECK_SECONDS:g} to {MAX_VALID_S:g} seconds, not {config.valid_s:g}")
    return config


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
        self._guard: Callable[[TrustBundle], None] | None = None
        self._config: TrustConfig | None = None  # The last that could be used.
        self.followers = 0
        path = authority.directory / BUNDLE
        first = self._make(0, load_trust_config(authority.directory / TRUST))
        try:
            self._take(load_bundle(path) if path.exists() else first)
        except BundleError as error:
            log.error("%s; it is made anew", error)  # Everything in it stands elsewhere.
            self._take(first)
        if not self.refresh():
            save_bundle(path, self.bundle)

    def _take(self, bundle: TrustBundle) -> None:
        self.bundle = bundle
        self.encoded = bundle.encode()

    def on_change(self, listener: Callable[[TrustBundle], None]) -> None:
        """Is called with each new bundle, before who follows hears of it."""
        self._listeners.append(listener)

    def guard(self, check: Callable[[TrustBundle], None]) -> None:
        """`check` raises BundleError for rules (a bundle, less what the authority itself has revoked) that must not be
        given out; those of now are looked at first."""
        check(self._rules(self.bundle))
        self._guard = check

    def _rules(self, bundle: TrustBundle) -> TrustBundle:
        return msgspec.structs.replace(bundle, revocations=self._config.revocations if self._config else ())

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)

    def _revocations(self) -> tuple[RevocationRecord, ...]:
        """Those that still matter: of certificates that have not ended."""
        earliest, after = self._clock() - CRL_GRACE_S, 0
        events = self._authority.revoked_intermediates()
        while page := self._authority.revocations(after):
            after = page[-1].number
            events += page
        return tuple(
            RevocationRecord(
                at=datetime.datetime.fromtimestamp(one.revoked_at, datetime.UTC),
                reason=one.reason,
                issuer_key_hash=one.issuer_key_hash,
                serial=f"{one.serial:x}",
            )
            for one in events
            if one.not_after > earliest
        )

    def _make(self, after: int, config: TrustConfig) -> TrustBundle:
        now = self._now()
        own = {one.key for one in self._own_logs}
        logs = (*self._own_logs, *(one for one in config.logs if one.key not in own))
        required = config.scts_required if config.scts_required is not None else min(1, len(logs))
        return TrustBundle(
            generation=max(after + 1, int(now.timestamp())),
            issued_at=now,
            valid_until=now + datetime.timedelta(seconds=config.valid_s),
            anchors=anchors_of([self._authority.root]),
            logs=logs,
            pins=config.pins,
            scts_required=required,
            inclusion=config.inclusion,
            required_roles=config.required_roles,
            revocations=(*config.revocations, *self._revocations()),
            hard_stale=config.hard_stale,
        )

    def refresh(self) -> bool:
        """Make the bundle anew if it would say something else, or is half way to its end. When trust.json cannot be used
        the bundle is made by the last that could, so that revocations go out all the same; then raises CaError or
        BundleError."""
        good = self._config
        try:
            self._config = load_trust_config(self._authority.directory / TRUST)
            return self._renew(self._config)
        except TrustError:
            self._config = good
            if good is not None:
                self._renew(good)
            raise

    def _renew(self, config: TrustConfig) -> bool:
        old = self.bundle
        new = self._make(old.generation, config)
        life = old.valid_until - old.issued_at
        same = msgspec.structs.replace(new, generation=old.generation, issued_at=old.issued_at, valid_until=old.valid_until)
        if same == old and new.valid_until - new.issued_at == life and self._now() < old.issued_at + life / 2:
            return False
        if self._guard is not None:
            self._guard(self._rules(new))
        save_bundle(self._authority.directory / BUNDLE, new)
        self._take(new)
        for listener in self._listeners:
            listener(new)
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def run(self) -> None:
        """Keep it true until cancelled, or the authority is closed."""
        loop = asyncio.get_running_loop()
        while True:
            with self._authority.subscribe() as events:
                waiting = asyncio.ensure_future(anext(events))
                try:
                    while True:
                        await asyncio.wait({waiting}, timeout=CHECK_SECONDS)
                        begin = loop.time()
                        while waiting.done():  # All that have come are in the one bundle.
                            waiting.result()
                            waiting = asyncio.ensure_future(anext(events))
                            await asyncio.sleep(0)
                        self._try_refresh()
                        await asyncio.sleep(min(REST * (loop.time() - begin), LONGEST_REST))
                except StopAsyncIteration:
                    return
                except SubscriptionOverrun:
                    log.warning("more revocations than could be taken one by one: they are read anew")
                finally:
                    waiting.cancel()
                    await asyncio.gather(waiting, return_exceptions=True)
            self._try_refresh()

    def _try_refresh(self) -> None:
        try:
            self.refresh()
        except TrustError as error:
            log.error("the trust bundle stays as it is: %s", error)

    async def follow(self, generation: int) -> AsyncGenerator[bytes, None]:
        """Bundles, encoded, from now on; at once when there is a newer one than `generation`. Who does not take one in
        time gets the newest next."""
        self.followers += 1
        try:
            while True:
                changed = self._changed
                if self.bundle.generation > generation:
                    generation = self.bundle.generation
                    yield self.encoded
                else:
                    await changed.wait()
        finally:
            self.followers -= 1

