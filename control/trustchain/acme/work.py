"""What goes on after a request was answered: challenges being tried, certificates being issued.

Both are bounded, in what runs at once and in what waits. State is in the store before work begins (`processing`), so a
server that was stopped takes its work up again when it starts. A certificate that was issued in the moment before a
stop may then be issued twice; the CA's log shows both, and the client gets the second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from cryptography import x509

from control.trustchain.acme.challenges import Validator
from control.trustchain.acme.config import AcmeConfig
from control.trustchain.acme.encoding import encode
from control.trustchain.acme.issuing import Issuer, busy, not_issued
from control.trustchain.acme.model import NewCertificate, Order
from control.trustchain.acme.problems import AcmeProblem, Document, Kind
from control.trustchain.acme.store import Store
from control.trustchain.errors import TrustError

log = logging.getLogger("stoq.acme")

STOP_SECONDS = 5.0  # Issuances that run when the server stops may take this long to end.


class Work:
    """The tasks of one server. `start` and `stop` frame its life."""

    def __init__(
        self, config: AcmeConfig, store: Store, issuer: Issuer, validator: Validator, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._store = store
        self._issuer = issuer
        self.validator = validator
        self._clock = clock
        self._validations: set[asyncio.Task[None]] = set()
        self._issuances: set[asyncio.Task[None]] = set()
        self._standing: list[asyncio.Task[None]] = []
        self._gate = asyncio.Semaphore(config.validations_at_once)

    async def start(self) -> None:
        """Begin to clean up, and take up again what was left unfinished."""
        challenges, orders = await self._store.unfinished()
        self._standing = [
            asyncio.create_task(self._keep_clean()),
            asyncio.create_task(self._resume(challenges, orders)),
        ]

    async def stop(self) -> None:
        """End all tasks. What was not done is taken up at the next start."""
        issuing = set(self._issuances)
        if issuing:
            await asyncio.wait(issuing, timeout=STOP_SECONDS)
        tasks = [*self._standing, *self._validations, *self._issuances]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_clean(self) -> None:
        while True:
            try:
                await self._store.clean()
            except Exception:
                log.exception("clean-up of the ACME store failed; it is tried again")
            await asyncio.sleep(self._config.clean_seconds)

    async def _resume(self, challenges: list[str], orders: list[str]) -> None:
        step = self._config.validations_at_once
        for begin in range(0, len(orders), step):
            await asyncio.gather(*(self._issue(one) for one in orders[begin : begin + step]), return_exceptions=True)
        for begin in range(0, len(challenges), step):
            await asyncio.gather(*map(self._validate, challenges[begin : begin + step]))

    def _spawn(
        self, tasks: set[asyncio.Task[None]], limit: int, what: str, work: Coroutine[None, None, None]
    ) -> asyncio.Task[None]:
        if len(tasks) >= limit:
            work.close()
            raise busy(f"{limit} {what} are waiting already; try again in a moment")
        task = asyncio.create_task(work)
        tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled():
                task.exception()  # Told already, to the log and to whoever still waits.

        task.add_done_callback(done)
        return task

    # ---- challenges ----

    async def try_challenge(self, challenge_id: str) -> None:
        """Begin to try a challenge if it is pending. Raises AcmeProblem when busy."""
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spawn(self._validations, self._config.validations_waiting, "validations", self._try(challenge_id, begun))
        await begun

    async def _try(self, challenge_id: str, begun: asyncio.Future[None]) -> None:
        try:
            fresh = await self._store.begin_challenge(challenge_id)
        except Exception as error:
            if not begun.done():
                begun.set_exception(error)
            return
        finally:
            if not begun.done():
                begun.set_result(None)
        if fresh:
            await self._validate(challenge_id)

    async def _validate(self, challenge_id: str) -> None:
        try:
            error = await self._outcome(challenge_id)
            await self._store.finish_challenge(challenge_id, error)
        except Exception:
            log.exception("the outcome of a challenge could not be stored; it is tried again at the next start")

    async def _outcome(self, challenge_id: str) -> Document | None:
        authorization = await self._store.authorization_of(challenge_id)
        account = None if authorization is None else await self._store.account(authorization.account)
        if authorization is None or account is None:
            return None
        challenge = next(one for one in authorization.challenges if one.id == challenge_id)
        async with self._gate:
            try:
                await self.validator.validate(
                    challenge.type, authorization.identifier, challenge.token, account.thumbprint
                )
            except AcmeProblem as problem:
                log.info("%s for %s failed: %s", challenge.type, authorization.identifier.value, problem)
                return problem.document
            except Exception:
                log.exception("trying %s for %s failed", challenge.type, authorization.identifier.value)
                return AcmeProblem(Kind.SERVER_INTERNAL, "the challenge could not be tried: an error of ours").document
        return None

    # ---- orders ----

    async def issue(self, order: Order, csr: bytes) -> None:
        """Have a certificate issued for an order that is ready; returns when that is done, or when it takes long.

        Raises AcmeProblem: orderNotReady; too busy or the CA cannot now, then the order is ready as before."""
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._spawn(
            self._issuances, self._config.issuances_at_once, "certificates", self._finalize(order.id, csr, begun)
        )
        await begun
        done, _ = await asyncio.wait({task}, timeout=self._config.finalize_wait_seconds)
        if done and not task.cancelled():
            task.result()

    async def _finalize(self, order_id: str, csr: bytes, begun: asyncio.Future[None]) -> None:
        try:
            await self._store.begin_order(order_id, csr)
        except Exception as error:
            if not begun.done():
                begun.set_exception(error)
            return
        finally:
            if not begun.done():
                begun.set_result(None)
        await self._issue(order_id)

    async def _issue(self, order_id: str) -> None:
        order = await self._store.order(order_id)
        if order is None or order.csr is None:
            return
        names = [identifier.value for identifier in order.identifiers]
        try:
            chain = await self._issuer.issue_acme(order.csr, names, order.account)
            issued = _facts(chain)
        except TrustError as error:
            problem = not_issued(error)
            if problem is None:
                await self._store.postpone_order(order_id)
                log.warning("the CA cannot issue for %s now: %s", ", ".join(names), error)
                raise busy(f"the CA cannot issue now: {error}") from None
            await self._store.fail_order(order_id, problem.document)
        except Exception:
            log.exception("issuing for %s failed", ", ".join(names))
            problem = AcmeProblem(Kind.SERVER_INTERNAL, "the certificate could not be issued: an error of ours")
            await self._store.fail_order(order_id, problem.document)
        else:
            await self._store.finish_order(order_id, issued)


def _facts(chain: list[bytes]) -> NewCertificate:
    leaf = x509.load_der_x509_certificate(chain[0])
    return NewCertificate(
        tuple(chain), renewal_id(leaf), leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    )


def renewal_id(leaf: x509.Certificate) -> str:
    """The certificate's identifier of RFC 9773 section 4.1; empty if it has no authority key identifier."""
    try:
        authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    serial = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
    return "" if authority is None else f"{encode(authority)}.{encode(serial)}"
