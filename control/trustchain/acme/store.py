"""What the ACME server remembers: accounts, orders, authorizations, challenges, certificates. Survives restarts.

Every method is one transaction (`database.transaction`) and moves objects only along the arrows of `model`; what was
overtaken by something else (an authorization deactivated while it was being validated) stays as it is. All tables are
bounded by `Limits`; an order and what hangs on it goes when it has expired, or with its certificate.

Expiry is computed when something is read, so it is never late; `clean` removes what nobody can use any more.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from control.trustchain.acme.database import Database, transaction
from control.trustchain.acme.encoding import encode
from control.trustchain.acme.model import (
    Account,
    AccountStatus,
    Authorization,
    AuthorizationStatus,
    Certificate,
    Challenge,
    ChallengeStatus,
    Limits,
    NewAuthorization,
    NewCertificate,
    Order,
    OrderStatus,
    order_status,
)
from control.trustchain.acme.problems import AcmeProblem, Document, Identifier, Kind

IDLE_ACCOUNT_SECONDS = 3600.0  # Younger accounts may be about to order.
RETRY_SECONDS = 3600  # What a client that met a bound is told to wait.


def _new_id() -> str:
    return encode(secrets.token_bytes(16))


def _full(detail: str) -> AcmeProblem:
    return AcmeProblem(Kind.RATE_LIMITED, detail, headers={"Retry-After": str(RETRY_SECONDS)})


def _error(text: str | None) -> Document | None:
    return None if text is None else msgspec.json.decode(text, type=Document)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Store(Database):
    """The server's memory, in one file."""

    def __init__(self, path: Path, clock: Callable[[], float], limits: Limits) -> None:
        super().__init__(path)
        self._clock = clock
        self.limits = limits

    @classmethod
    async def open(cls, path: Path, clock: Callable[[], float], limits: Limits | None = None) -> Store:
        """The store in this file, made if there is none. `clock`: seconds since 1970. Raises StoreError."""
        return await cls(path, clock, limits or Limits())._start()

    def _count(self, what: str, *args: object) -> int:
        return int(self.rows.execute(f"SELECT count(*) FROM {what}", args).fetchone()[0])

    # ---- accounts ----

    @transaction
    def add_external_account(self, kid: str, secret: bytes, expires: float) -> None:
        """Let somebody register once with this key identifier and MAC key (section 7.3.4), until `expires`."""
        self.rows.execute("DELETE FROM external_accounts WHERE account IS NULL AND expires <= ?", (self._clock(),))
        if self._count("external_accounts") >= self.limits.external_accounts:
            raise _full("no more external accounts can be kept; raise Limits.external_accounts")
        try:
            self.rows.execute(
                "INSERT INTO external_accounts (kid, secret, expires) VALUES (?, ?, ?)", (kid, secret, expires)
            )
        except sqlite3.IntegrityError:
            raise AcmeProblem(Kind.MALFORMED, f"there is an external account {kid!r} already") from None

    @transaction
    def external_secret(self, kid: str) -> bytes | None:
        """The MAC key, unless there is none of this name, it was used, or it has expired."""
        row = self.rows.execute(
            "SELECT secret FROM external_accounts WHERE kid = ? AND account IS NULL AND expires > ?",
            (kid, self._clock()),
        ).fetchone()
        return None if row is None else bytes(row["secret"])

    @transaction
    def register(
        self, jwk: str, thumbprint: str, contact: Sequence[str], agreed: bool, external: str | None
    ) -> tuple[Account, bool]:
        """The account of this key and whether it was made now. `external` is used up by it. Raises AcmeProblem."""
        existing = self._account("thumbprint", thumbprint)
        if existing is not None:
            return existing, False
        if self._count("accounts") >= self.limits.accounts:
            self._forget_an_account()
        account = Account(_new_id(), AccountStatus.VALID, jwk, thumbprint, tuple(contact), agreed, external)
        if external is not None:
            used = self.rows.execute(
                "UPDATE external_accounts SET account = ?, secret = x'' WHERE kid = ? AND account IS NULL",
                (account.id, external),
            )
            if used.rowcount != 1:
                raise AcmeProblem(Kind.UNAUTHORIZED, "this external account was used already; ask for another one")
        self.rows.execute(
            "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (account.id, account.status, jwk, thumbprint, _text(account.contact), agreed, external, self._clock()),
        )
        return account, True

    def _forget_an_account(self) -> None:
        """At the bound one account goes, the oldest of those that are deactivated, or else of those that hold nothing:
        no order, no certificate, no external account, and not from the last hour. So a flood of registrations does not
        shut others out for long. What went can register again."""
        row = self.rows.execute(
            "SELECT id FROM accounts WHERE status != ? OR (external IS NULL AND created < ?"
            " AND NOT EXISTS (SELECT 1 FROM orders WHERE orders.account = accounts.id))"
            " ORDER BY status = ?, created LIMIT 1",
            (AccountStatus.VALID, self._clock() - IDLE_ACCOUNT_SECONDS, AccountStatus.VALID),
        ).fetchone()
        if row is None:
            raise _full("this server keeps no more accounts; try again later or ask its operator")
        self.rows.execute("DELETE FROM external_accounts WHERE account = ?", (row["id"],))
        self.rows.execute("DELETE FROM accounts WHERE id = ?", (row["id"],))

    def _account(self, column: str, value: str) -> Account | None:
        row = self.rows.execute(f"SELECT * FROM accounts WHERE {column} = ?", (value,)).fetchone()
        if row is None:
            return None
        return Account(
            row["id"],
            AccountStatus(row["status"]),
            row["jwk"],
            row["thumbprint"],
            tuple(msgspec.json.decode(row["contact"], type=list[str])),
            bool(row["agreed"]),
            row["external"],
        )

    @transaction
    def account(self, account_id: str) -> Account | None:
        """An account by its id."""
        return self._account("id", account_id)

    @transaction
    def account_of_key(self, thumbprint: str) -> Account | None:
        """The account whose key this is."""
        return self._account("thumbprint", thumbprint)

    @transaction
    def set_contact(self, account_id: str, contact: Sequence[str]) -> None:
        """Section 7.3.2."""
        self.rows.execute("UPDATE accounts SET contact = ? WHERE id = ?", (_text(list(contact)), account_id))

    @transaction
    def change_key(self, account: Account, jwk: str, thumbprint: str) -> str | None:
        """Give the account another key. Returns the id of the account that has this key already, then nothing is done.

        Raises AcmeProblem if `account` no longer has the key it is said to have."""
        other = self._account("thumbprint", thumbprint)
        if other is not None:
            return other.id
        changed = self.rows.execute(
            "UPDATE accounts SET jwk = ?, thumbprint = ? WHERE id = ? AND thumbprint = ? AND status = ?",
            (jwk, thumbprint, account.id, account.thumbprint, AccountStatus.VALID),
        )
        if changed.rowcount != 1:
            raise AcmeProblem(Kind.UNAUTHORIZED, "the account's key has been changed by another request")
        return None

    @transaction
    def deactivate_account(self, account_id: str) -> None:
        """For good (section 7.3.6); what it was about to do is cancelled."""
        self.rows.execute("UPDATE accounts SET status = ? WHERE id = ?", (AccountStatus.DEACTIVATED, account_id))
        self.rows.execute(
            "UPDATE authorizations SET status = ? WHERE account = ? AND status IN (?, ?)",
            (AuthorizationStatus.DEACTIVATED, account_id, AuthorizationStatus.PENDING, AuthorizationStatus.VALID),
        )
        self.rows.execute(
            "UPDATE orders SET status = ? WHERE account = ? AND status IN (?, ?)",
            (OrderStatus.INVALID, account_id, OrderStatus.PENDING, OrderStatus.READY),
        )

    # ---- orders ----

    @transaction
    def new_order(
        self,
        account_id: str,
        wanted: Sequence[NewAuthorization],
        identifiers: Sequence[Identifier],
        expires: float,
        replaces: str | None,
    ) -> Order:
        """An order with an authorization for each of `wanted`. `replaces`: RFC 9773 section 5.

        Raises AcmeProblem at a bound (what has expired, and invalid orders of the account, go first)."""
        if self._count("orders WHERE account = ?", account_id) >= self.limits.orders_per_account:
            self._clean()
            self.rows.execute("DELETE FROM orders WHERE account = ? AND status = ?", (account_id, OrderStatus.INVALID))
            if self._count("orders WHERE account = ?", account_id) >= self.limits.orders_per_account:
                raise _full(f"this account has {self.limits.orders_per_account} orders open or with valid certificates")
        if self._count("orders") >= self.limits.orders:
            self._clean()
            if self._count("orders") >= self.limits.orders:
                raise _full("this server keeps no more orders; try again later or ask its operator")
        status = self.rows.execute("SELECT status FROM accounts WHERE id = ?", (account_id,)).fetchone()
        if status is None or status["status"] != AccountStatus.VALID:
            raise AcmeProblem(Kind.UNAUTHORIZED, "the account is deactivated")
        order_id = _new_id()
        self.rows.execute(
            "INSERT INTO orders (id, account, status, identifiers, expires, replaces, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (order_id, account_id, OrderStatus.PENDING, _text(list(identifiers)), expires, replaces, self._clock()),
        )
        for one in wanted:
            authorization_id = _new_id()
            self.rows.execute(
                "INSERT INTO authorizations VALUES (?, ?, ?, ?, ?, ?, ?)",
                (authorization_id, order_id, account_id, _text(one.identifier), one.wildcard,
                 AuthorizationStatus.PENDING, expires),
            )  # fmt: skip
            token = encode(secrets.token_bytes(32))
            self.rows.executemany(
                "INSERT INTO challenges (id, authorization, type, token, status) VALUES (?, ?, ?, ?, ?)",
                [(_new_id(), authorization_id, kind, token, ChallengeStatus.PENDING) for kind in one.challenges],
            )
        order = self._order(order_id)
        assert order is not None
        return order

    def _order(self, order_id: str) -> Order | None:
        row = self.rows.execute(
            "SELECT orders.*, certificates.id AS certificate FROM orders"
            " LEFT JOIN certificates ON certificates.order_id = orders.id WHERE orders.id = ?",
            (order_id,),
        ).fetchone()
        if row is None:
            return None
        now = self._clock()
        authorizations = self.rows.execute(
            "SELECT id, status, expires FROM authorizations WHERE order_id = ? ORDER BY rowid", (order_id,)
        ).fetchall()
        status = order_status(
            OrderStatus(row["status"]), (_current(one["status"], one["expires"], now) for one in authorizations)
        )
        return Order(
            row["id"],
            row["account"],
            status,
            tuple(msgspec.json.decode(row["identifiers"], type=list[Identifier])),
            tuple(one["id"] for one in authorizations),
            row["expires"],
            row["csr"],
            row["certificate"],
            _error(row["error"]),
            row["replaces"],
        )

    @transaction
    def order(self, order_id: str) -> Order | None:
        """An order as it is now."""
        return self._order(order_id)

    @transaction
    def orders(self, account_id: str) -> list[str]:
        """The ids of the account's orders that are not invalid (section 7.1.2.1), oldest first."""
        ids = self.rows.execute("SELECT id FROM orders WHERE account = ? ORDER BY rowid", (account_id,)).fetchall()
        found = (self._order(row["id"]) for row in ids)
        return [order.id for order in found if order is not None and order.status != OrderStatus.INVALID]

    @transaction
    def begin_order(self, order_id: str, csr: bytes) -> Order:
        """From `ready` to `processing`. Raises AcmeProblem (orderNotReady) from any other state."""
        order = self._order(order_id)
        if order is None or order.status != OrderStatus.READY:
            raise AcmeProblem(
                Kind.ORDER_NOT_READY,
                f"the order is {order.status if order else 'gone'}, not ready: "
                "all authorizations must be valid, and it is finalized once",
            )
        self.rows.execute("UPDATE orders SET status = ?, csr = ? WHERE id = ?", (OrderStatus.PROCESSING, csr, order_id))
        return replace(order, status=OrderStatus.PROCESSING, csr=csr)

    @transaction
    def finish_order(self, order_id: str, issued: NewCertificate) -> None:
        """From `processing` to `valid`; a certificate that this one replaces counts as replaced."""
        done = self.rows.execute(
            "UPDATE orders SET status = ? WHERE id = ? AND status = ?",
            (OrderStatus.VALID, order_id, OrderStatus.PROCESSING),
        )
        if done.rowcount != 1:
            return
        self.rows.execute(
            "INSERT INTO certificates (id, order_id, account, chain, fingerprint, renewal_id, not_before, not_after)"
            " SELECT ?, id, account, ?, ?, ?, ?, ? FROM orders WHERE id = ?",
            (_new_id(), msgspec.msgpack.encode(issued.chain), hashlib.sha256(issued.chain[0]).hexdigest(),
             issued.renewal_id, issued.not_before, issued.not_after, order_id),
        )  # fmt: skip
        self.rows.execute(
            "UPDATE certificates SET replaced = 1 WHERE renewal_id = (SELECT replaces FROM orders WHERE id = ?)",
            (order_id,),
        )

    @transaction
    def fail_order(self, order_id: str, error: Document) -> None:
        """From `processing` to `invalid`."""
        self.rows.execute(
            "UPDATE orders SET status = ?, error = ? WHERE id = ? AND status = ?",
            (OrderStatus.INVALID, _text(error), order_id, OrderStatus.PROCESSING),
        )

    @transaction
    def postpone_order(self, order_id: str) -> None:
        """From `processing` back to `ready`: the CA could not be reached, and the client may try again."""
        self.rows.execute(
            "UPDATE orders SET status = ?, csr = NULL WHERE id = ? AND status = ?",
            (OrderStatus.READY, order_id, OrderStatus.PROCESSING),
        )

    # ---- authorizations ----

    def _authorization(self, authorization_id: str) -> Authorization | None:
        row = self.rows.execute("SELECT * FROM authorizations WHERE id = ?", (authorization_id,)).fetchone()
        if row is None:
            return None
        challenges = self.rows.execute(
            "SELECT * FROM challenges WHERE authorization = ? ORDER BY rowid", (authorization_id,)
        )
        return Authorization(
            row["id"],
            row["account"],
            msgspec.json.decode(row["identifier"], type=Identifier),
            bool(row["wildcard"]),
            _current(row["status"], row["expires"], self._clock()),
            row["expires"],
            tuple(_challenge(one) for one in challenges),
        )

    @transaction
    def authorization(self, authorization_id: str) -> Authorization | None:
        """An authorization with its challenges."""
        return self._authorization(authorization_id)

    @transaction
    def authorization_of(self, challenge_id: str) -> Authorization | None:
        """The authorization that a challenge belongs to."""
        row = self.rows.execute("SELECT authorization FROM challenges WHERE id = ?", (challenge_id,)).fetchone()
        return None if row is None else self._authorization(row["authorization"])

    def _set_authorization(self, authorization_id: str, status: AuthorizationStatus, error: Document | None) -> None:
        self.rows.execute("UPDATE authorizations SET status = ? WHERE id = ?", (status, authorization_id))
        row = self.rows.execute("SELECT order_id FROM authorizations WHERE id = ?", (authorization_id,)).fetchone()
        order = self._order(row["order_id"])
        assert order is not None
        self.rows.execute(
            "UPDATE orders SET status = ?, error = coalesce(error, ?) WHERE id = ?",
            (order.status, None if error is None else _text(error), order.id),
        )

    @transaction
    def deactivate_authorization(self, authorization_id: str) -> None:
        """Section 7.5.2; an order that hangs on it and is not yet finalized becomes invalid."""
        found = self._authorization(authorization_id)
        if found is not None and found.status in (AuthorizationStatus.PENDING, AuthorizationStatus.VALID):
            self._set_authorization(authorization_id, AuthorizationStatus.DEACTIVATED, None)

    @transaction
    def begin_challenge(self, challenge_id: str) -> bool:
        """From `pending` to `processing`: True if it did that. One challenge of an authorization is tried at a time."""
        begun = self.rows.execute(
            "UPDATE challenges SET status = ? WHERE id = ? AND status = ?"
            " AND (SELECT status FROM authorizations AS a WHERE a.id = challenges.authorization AND a.expires > ?) = ?"
            " AND NOT EXISTS (SELECT 1 FROM challenges AS o WHERE o.authorization = challenges.authorization"
            " AND o.status = ?)",
            (ChallengeStatus.PROCESSING, challenge_id, ChallengeStatus.PENDING, self._clock(),
             AuthorizationStatus.PENDING, ChallengeStatus.PROCESSING),
        )  # fmt: skip
        return begun.rowcount == 1

    @transaction
    def finish_challenge(self, challenge_id: str, error: Document | None) -> None:
        """From `processing` to `valid`, or with an error to `invalid`; the authorization follows if it is pending."""
        status = ChallengeStatus.VALID if error is None else ChallengeStatus.INVALID
        done = self.rows.execute(
            "UPDATE challenges SET status = ?, validated = ?, error = ? WHERE id = ? AND status = ?"
            " RETURNING authorization",
            (status, self._clock() if error is None else None, None if error is None else _text(error), challenge_id,
             ChallengeStatus.PROCESSING),
        ).fetchone()  # fmt: skip
        if done is None:
            return
        found = self._authorization(done["authorization"])
        if found is None or found.status != AuthorizationStatus.PENDING:
            return
        outcome = AuthorizationStatus.VALID if error is None else AuthorizationStatus.INVALID
        self._set_authorization(found.id, outcome, error)

    @transaction
    def unfinished(self) -> tuple[list[str], list[str]]:
        """Ids of challenges and of orders in `processing`: what a server that starts takes up again."""
        challenges = self.rows.execute("SELECT id FROM challenges WHERE status = ?", (ChallengeStatus.PROCESSING,))
        orders = self.rows.execute("SELECT id FROM orders WHERE status = ?", (OrderStatus.PROCESSING,))
        return [row["id"] for row in challenges], [row["id"] for row in orders]

    @transaction
    def controls(self, account_id: str, identifiers: Sequence[tuple[Identifier, bool]]) -> bool:
        """Whether the account holds valid authorizations for all of these (identifier, wildcard)."""
        return all(
            self._count(
                "authorizations WHERE account = ? AND identifier = ? AND wildcard = ? AND status = ? AND expires > ?",
                account_id, _text(identifier), wildcard, AuthorizationStatus.VALID, self._clock(),
            )
            for identifier, wildcard in identifiers
        )  # fmt: skip

    # ---- certificates ----

    def _certificate(self, column: str, value: str) -> Certificate | None:
        row = self.rows.execute(f"SELECT * FROM certificates WHERE {column} = ?", (value,)).fetchone()
        if row is None:
            return None
        return Certificate(
            row["id"],
            row["order_id"],
            row["account"],
            tuple(msgspec.msgpack.decode(row["chain"], type=list[bytes])),
            row["not_before"],
            row["not_after"],
            bool(row["revoked"]),
            bool(row["replaced"]),
        )

    @transaction
    def certificate(self, certificate_id: str) -> Certificate | None:
        """A certificate by its id."""
        return self._certificate("id", certificate_id)

    @transaction
    def certificate_of(self, leaf: bytes) -> Certificate | None:
        """The certificate whose leaf is exactly this (DER)."""
        return self._certificate("fingerprint", hashlib.sha256(leaf).hexdigest())

    @transaction
    def certificate_to_renew(self, renewal_id: str) -> Certificate | None:
        """A certificate by its RFC 9773 section 4.1 identifier."""
        return self._certificate("renewal_id", renewal_id)

    @transaction
    def set_revoked(self, certificate_id: str) -> None:
        """Remember that the CA has revoked it."""
        self.rows.execute("UPDATE certificates SET revoked = 1 WHERE id = ?", (certificate_id,))

    # ---- expiry ----

    def _clean(self) -> int:
        now = self._clock()
        return self.rows.execute(
            "DELETE FROM orders WHERE expires <= ? AND status != ?"
            " AND NOT EXISTS (SELECT 1 FROM certificates AS c WHERE c.order_id = orders.id AND c.not_after > ?)",
            (now, OrderStatus.PROCESSING, now),
        ).rowcount

    @transaction
    def clean(self) -> int:
        """Remove orders that have expired with all that hangs on them, unless a certificate of theirs is still valid.

        Returns how many went."""
        return self._clean()


def _current(status: str, expires: float, now: float) -> AuthorizationStatus:
    """An authorization's state, expiry included."""
    current = AuthorizationStatus(status)
    if current in (AuthorizationStatus.PENDING, AuthorizationStatus.VALID) and expires <= now:
        return AuthorizationStatus.EXPIRED
    return current


def _challenge(row: sqlite3.Row) -> Challenge:
    return Challenge(
        row["id"],
        row["authorization"],
        row["type"],
        row["token"],
        ChallengeStatus(row["status"]),
        row["validated"],
        _error(row["error"]),
    )
