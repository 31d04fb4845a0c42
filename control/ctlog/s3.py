"""A log in S3: its objects, sealed (`envelope`), and its head behind conditional writes. Any S3, by boto3.

       S3Storage ─┐                    ┌─ executor: `connections` threads ─ boto3 client ─ `connections` sockets
       S3LockStore┴─ seal ─▶ _Bucket ──┤
                                       └─ tries: one request each; transient failures again after a jittered pause

Tries. botocore's own retries are off: it would repeat a conditional write whose first try took effect and report the
second one's refusal, and its total time has no bound. Here a request has `attempt_timeout_s` for each piece of silence,
an operation makes no new try after `deadline_s`, and what a try may have done is known to who decides what follows.

Lock. A head is an object replaced with `If-Match: <the ETag under which we saw the old head>` and created with
`If-None-Match: *`. When a try's outcome is unknown (no answer, or 412 after some middlebox sent it twice) the object is
read. Sealing never gives the same bytes twice, so bytes equal to those we sent prove that our write is the one there;
the old head means it is not (yet), and the try is repeated on that ETag, of which one write at most can ever succeed;
any other head is a LockConflict. A server which ignores the conditions, or checks them before and apart from writing,
would let two sequencers sign: `S3LockStore.open` probes for both and refuses it.

Durability is the server's: S3 answers a PUT when the object is stored redundantly. A self-run server may mean less
(SeaweedFS's gateway never calls fsync: objects survive its processes, not its machine); the log finds such a loss on
start as it finds any other roll-back, by its head.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import os
import random
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import urlsplit

from control.ctlog.envelope import MAX_SEALED_BYTES, Envelope, StorageTampered
from control.ctlog.errors import LockConflict, LogError, NotFound, Unavailable
from control.ctlog.storage import check_key

INSTALL = "pip install boto3"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
LOG_ID_BYTES = 32
READ_BYTES = 1 << 20  # read at once from an answer; the deadline is looked at in between
DELETE_BATCH = 1000  # DeleteObjects takes no more
KNOWN_HEADS = 64  # logs whose last head and ETag we remember
# Two at a time, since a server may make those who wait for the same object poll (SeaweedFS: in steps of 1 s). One that
# checks before it writes lets the second through in most races, so all of them coming out right is no accident.
PROBE_RACERS = 2
PROBE_RACES = 6
TRANSIENT_CODES = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

R = TypeVar("R")


class S3Unusable(LogError):
    """This S3 cannot carry the log as it is configured; the text says what to change."""


class S3Denied(Unavailable):
    """The server refuses what should be allowed (credentials, bucket, clock); no other try until somebody acts."""


class _Again(Exception):
    """A try failed in a way that passes; what it asked for may have happened all the same."""


class _Refused(Exception):
    """The condition of a conditional write does not hold (HTTP 412, or 404 for If-Match)."""


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where, as whom, and how patiently. Raises S3Unusable for what cannot be right.

    Empty `endpoint` is AWS (dual-stack); empty `access_key` takes boto3's usual sources (environment, `profile`,
    instance). All objects lie below `prefix/`, and their names are sealed with them: a bucket may be copied, a prefix
    not renamed. `http://` goes to loopback only unless `plain_http` says that the network is trusted: objects would
    be as safe, but the answers to conditional writes would not. Times in seconds.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    profile: str = ""
    ca_file: str = ""
    plain_http: bool = False
    create_bucket: bool = False
    # A round of the sequencer writes some six tiles; what goes beyond overlaps rounds and readers.
    connections: int = 16
    connect_timeout_s: float = 3.0
    attempt_timeout_s: float = 5.0
    deadline_s: float = 30.0
    backoff_s: float = 0.05
    backoff_max_s: float = 2.0

    def __post_init__(self) -> None:
        if not BUCKET.fullmatch(self.bucket):
            raise S3Unusable(f"{self.bucket!r} is no name of a bucket: 3 to 63 of a-z 0-9 . -")
        if self.prefix:
            check_key(self.prefix)
        if not PROBE_RACERS <= self.connections <= 256:
            raise S3Unusable(f"connections: between {PROBE_RACERS} and 256, not {self.connections}")
        if bool(self.access_key) != bool(self.secret_key):
            raise S3Unusable("access_key and secret_key: give both, or none for boto3's usual sources")
        times = (self.connect_timeout_s, self.attempt_timeout_s, self.deadline_s, self.backoff_s, self.backoff_max_s)
        if not all(0 < value <= 3600 for value in times):
            raise S3Unusable(f"times are above 0 and at most 3600 seconds: {times}")
        if self.endpoint:
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        try:
            url = urlsplit(self.endpoint)
            host, _ = url.hostname or "", url.port
        except ValueError as error:
            raise S3Unusable(f"the endpoint is no URL: {error}") from None
        if "@" in url.netloc:
            raise S3Unusable("the endpoint holds credentials; give them as access_key and secret_key")
        if url.scheme not in ("http", "https") or not host or url.path not in ("", "/") or url.query or url.fragment:
            raise S3Unusable(f"the endpoint {self.endpoint!r} is not of the form https://HOST:PORT")
        if url.scheme == "http" and not self.plain_http and not self.loopback:
            raise S3Unusable(f"{self.endpoint} is not encrypted and not this machine: use https, or set plain_http")

    @property
    def loopback(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.endpoint).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def place(self) -> str:
        """For people; no secret."""
        return f"s3://{self.bucket}/{self.prefix} at {self.endpoint or f'AWS {self.region}'}"


@dataclass(frozen=True, slots=True)
class _Object:
    body: bytes
    etag: str


class _Tries:
    """The pauses of one operation."""

    def __init__(self, bucket: _Bucket, what: str) -> None:
        self._bucket = bucket
        self._what = what
        self._made = 0
        self._ends = bucket.clock() + bucket.options.deadline_s

    @property
    def over(self) -> bool:
        """Whether the deadline is past."""
        return self._bucket.clock() >= self._ends

    def again(self, cause: BaseException) -> None:
        """Pause before the next try. Raises Unavailable when there is none any more."""
        self._made += 1
        options = self._bucket.options
        ceiling = min(options.backoff_max_s, options.backoff_s * 2 ** min(self._made - 1, 16))
        pause = ceiling * (0.5 + 0.5 * self._bucket.uniform())
        if self._bucket.clock() + pause >= self._ends:
            raise Unavailable(
                f"{self._what} in {options.place}: no success in {self._made} tries within {options.deadline_s:g} s; "
                f"the last one: {cause}"
            ) from None
        if self._bucket.closing.wait(pause):
            raise Unavailable(f"{self._what} in {options.place}: closed meanwhile; the last try: {cause}") from None


class _Bucket:
    """Single requests, and the threads they run in. Everything but `run`, `open` and `close` blocks."""

    def __init__(self, options: S3Options, clock: Callable[[], float], uniform: Callable[[], float]) -> None:
        self.options = options
        self.clock = clock
        self.uniform = uniform
        self.closing = threading.Event()
        self._executor = ThreadPoolExecutor(options.connections, thread_name_prefix="s3")
        self._client: Any = None
        self._errors: Any = None
        self._parser_error: Any = None

    async def open(self) -> None:
        """Connect. Raises S3Unusable, Unavailable."""
        try:
            await self.run(self._open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Waits for requests under way: at most one try's timeout."""
        self.closing.set()
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def run(self, function: Callable[[], R]) -> R:
        """In one of the threads."""
        if self.closing.is_set():
            raise Unavailable(f"{self.options.place} was closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _open(self) -> None:
        try:
            boto3: Any = importlib.import_module("boto3")
            config: Any = importlib.import_module("botocore.config")
            self._errors = importlib.import_module("botocore.exceptions")
            self._parser_error = importlib.import_module("botocore.parsers").ResponseParserError
        except ImportError:
            raise S3Unusable(f"a log in S3 needs boto3: {INSTALL}") from None
        options = self.options
        addressing = {"addressing_style": "path" if options.endpoint else "auto"}
        settings = config.Config(
            signature_version="s3v4",
            s3=addressing if options.endpoint else {**addressing, "use_dualstack_endpoint": True},
            # The envelope authenticates every byte; botocore's CRCs would turn uploads into aws-chunked trailers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            max_pool_connections=options.connections,
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.attempt_timeout_s,
            tcp_keepalive=True,
            **({"proxies": {}} if options.loopback else {}),
        )
        try:
            session = boto3.session.Session(profile_name=options.profile or None)
            self._client = session.client(
                "s3",
                region_name=options.region,
                endpoint_url=options.endpoint or None,
                verify=options.ca_file or None,
                aws_access_key_id=options.access_key or None,
                aws_secret_access_key=options.secret_key or None,
                aws_session_token=options.session_token or None,
                config=settings,
            )
        except (self._errors.BotoCoreError, ValueError) as error:
            raise S3Unusable(f"{options.place}: {error}") from None
        tries = _Tries(self, "looking for the bucket")
        while True:
            try:
                self._find_bucket()
                return
            except _Again as error:
                tries.again(error)

    def _find_bucket(self) -> None:
        bucket = self.options.bucket
        try:
            self._client.head_bucket(Bucket=bucket)
            return
        except Exception as error:
            if self._status(error) != 404:
                raise self._translated(error) from None
        if not self.options.create_bucket:
            raise S3Unusable(f"{self.options.place}: there is no such bucket; create it, or set create_bucket")
        aws = not self.options.endpoint and self.options.region != "us-east-1"
        extra = {"CreateBucketConfiguration": {"LocationConstraint": self.options.region}} if aws else {}
        try:
            self._client.create_bucket(Bucket=bucket, **extra)
        except Exception as error:
            if self._code(error) != "BucketAlreadyOwnedByYou":  # a try before this one made it
                raise self._translated(error) from None

    def name(self, key: str) -> str:
        """The object's name in the bucket."""
        return f"{self.options.prefix}/{key}" if self.options.prefix else key

    def put(self, name: str, body: bytes, **condition: str) -> str:
        """One try; the ETag, or "" when the server names none. `condition`: IfMatch or IfNoneMatch. Raises _Again,
        _Refused, S3Denied."""
        try:
            answer = self._client.put_object(
                Bucket=self.options.bucket,
                Key=name,
                Body=body,
                ContentType="application/octet-stream",
                **condition,
            )
        except Exception as error:
            status = self._status(error)
            if condition and (status == 412 or (status == 404 and self._code(error) == "NoSuchKey")):
                raise _Refused from None
            raise self._translated(error) from None
        return str(answer.get("ETag") or "")

    def get(self, name: str, tries: _Tries) -> _Object | None:
        """One try; None: there is no such object. Raises _Again, S3Denied, StorageTampered."""
        try:
            answer = self._client.get_object(Bucket=self.options.bucket, Key=name)
        except Exception as error:
            if self._status(error) == 404 and self._code(error) != "NoSuchBucket":
                return None
            raise self._translated(error) from None
        stream = answer["Body"]
        if not {"content-length", "transfer-encoding"} & answer["ResponseMetadata"]["HTTPHeaders"].keys():
            stream.close()  # http.client takes a connection that ends among the headers for the end of the headers
            raise _Again("the answer ends among its headers")
        try:
            parts: list[bytes] = []
            size = 0
            while part := stream.read(READ_BYTES):
                parts.append(part)
                size += len(part)
                if size > MAX_SEALED_BYTES:
                    raise StorageTampered(f"{name} is larger than any object of a log ({MAX_SEALED_BYTES} bytes)")
                if tries.over:
                    raise _Again(f"{size} bytes came within the deadline, and more were to come")
        except (StorageTampered, _Again):
            stream.close()  # what was not read cannot be left on a kept connection
            raise
        except Exception as error:
            stream.close()
            raise self._translated(error) from None
        return _Object(b"".join(parts), str(answer.get("ETag") or ""))

    def names(self, prefix: str) -> list[str]:
        """One try; up to 1000 names that begin so."""
        try:
            answer = self._client.list_objects_v2(Bucket=self.options.bucket, Prefix=prefix, MaxKeys=DELETE_BATCH)
        except Exception as error:
            raise self._translated(error) from None
        return [str(found["Key"]) for found in answer.get("Contents", ())]

    def delete(self, names: list[str]) -> None:
        """One try; up to 1000 names, which need not exist."""
        try:
            answer = self._client.delete_objects(
                Bucket=self.options.bucket,
                Delete={"Objects": [{"Key": name} for name in names], "Quiet": True},
            )
        except Exception as error:
            raise self._translated(error) from None
        failed = [found for found in answer.get("Errors", ()) if found.get("Code") != "NoSuchKey"]
        if failed:
            raise _Again(f"{len(failed)} of {len(names)} objects were not removed: {failed[0].get('Code')}")

    def repeat(self, what: str, once: Callable[[_Tries], R]) -> R:
        """Tries until one succeeds. For what may happen twice. Raises Unavailable."""
        tries = _Tries(self, what)
        while True:
            try:
                return once(tries)
            except _Again as error:
                tries.again(error)

    def _status(self, error: BaseException) -> int:
        if not isinstance(error, self._errors.ClientError):
            return 0
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)

    def _code(self, error: BaseException) -> str:
        if not isinstance(error, self._errors.ClientError):
            return ""
        return str(error.response.get("Error", {}).get("Code") or "")

    def _translated(self, error: BaseException) -> BaseException:
        """What a failed try means: another one, or somebody has to act. Other errors are ours and stay."""
        errors = self._errors
        if isinstance(error, errors.ClientError):
            code, status = self._code(error), self._status(error)
            if code in TRANSIENT_CODES or status in TRANSIENT_STATUS or status >= 500 or not status:
                return _Again(f"the server answers {status} {code}")
            message = str(error.response.get("Error", {}).get("Message") or "")[:200]
            return S3Denied(f"{self.options.place} refuses: {status} {code} {message}; correct it and try again")
        if isinstance(error, errors.SSLError):
            return S3Denied(f"{self.options.place}: TLS fails: {error}; is ca_file right?")
        if isinstance(error, errors.NoCredentialsError | errors.PartialCredentialsError):
            return S3Denied(f"{self.options.place}: no credentials; give access_key and secret_key, or a profile")
        broken = (errors.ConnectionError, errors.HTTPClientError, errors.IncompleteReadError, self._parser_error)
        if isinstance(error, (*broken, OSError, HTTPException)):
            return _Again(f"{type(error).__name__}: {error}")
        if isinstance(error, errors.BotoCoreError) and not isinstance(error, errors.ParamValidationError):
            return S3Denied(f"{self.options.place}: {error}")
        return error


class S3Storage:
    """`Storage` in a bucket. Objects are sealed, never cached; `put` writes up to `connections` at a time."""

    def __init__(self, bucket: _Bucket, envelope: Envelope) -> None:
        """Use `open`."""
        self._bucket = bucket
        self._envelope = envelope

    @classmethod
    async def open(
        cls,
        options: S3Options,
        envelope: Envelope,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> S3Storage:
        """Connect and look for the bucket. Raises S3Unusable, Unavailable."""
        bucket = _Bucket(options, clock, uniform)
        await bucket.open()
        return cls(bucket, envelope)

    async def put(self, objects: Mapping[str, bytes]) -> None:
        """See Storage. Returns or raises when every object's fate is known."""
        for key in objects:
            check_key(key)
        results = await asyncio.gather(
            *(self._bucket.run(_bound(self._put, key, data)) for key, data in objects.items()), return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:  # what no other try repairs goes first
            raise next((error for error in failures if not isinstance(error, Unavailable)), failures[0])

    def _put(self, key: str, data: bytes) -> None:
        name = self._bucket.name(key)
        sealed = self._envelope.seal(name, data)
        self._bucket.repeat(f"writing {key}", lambda _: self._bucket.put(name, sealed))

    async def get(self, key: str) -> bytes:
        """See Storage. Also raises StorageTampered."""
        check_key(key)
        return await self._bucket.run(_bound(self._get, key))

    def _get(self, key: str) -> bytes:
        name = self._bucket.name(key)
        found = self._bucket.repeat(f"reading {key}", lambda tries: self._bucket.get(name, tries))
        if found is None:
            raise NotFound(f"{key} is not in {self._bucket.options.place}")
        return self._envelope.open(name, found.body)

    async def delete(self, prefix: str) -> None:
        """See Storage."""
        check_key(prefix)
        await self._bucket.run(_bound(self._delete, prefix))

    def _delete(self, prefix: str) -> None:
        name = self._bucket.name(prefix)
        what = f"removing {prefix}"
        self._bucket.repeat(what, lambda _: self._bucket.delete([name]))
        before: list[str] = []
        tries = _Tries(self._bucket, what)
        while names := self._bucket.repeat(what, lambda _: self._bucket.names(f"{name}/")):
            if any(not found.startswith(f"{name}/") for found in names):
                raise S3Unusable(f"{self._bucket.options.place} lists objects that were not asked for; none is removed")
            if names == before:  # removed, yet listed: the server's listing is behind
                tries.again(RuntimeError(f"{names[0]} is still listed"))
            before = names
            self._bucket.repeat(what, _bound_tries(self._bucket.delete, names))

    async def close(self) -> None:
        """See Storage."""
        await self._bucket.close()

    def describe(self) -> str:
        """See Storage."""
        return f"objects in {self._bucket.options.place}, sealed under {self._envelope.key_id}"


class S3LockStore:
    """`LockStore` in a bucket whose server honours conditional writes."""

    def __init__(self, bucket: _Bucket, envelope: Envelope) -> None:
        """Use `open`, which probes."""
        self._bucket = bucket
        self._envelope = envelope
        self._guard = threading.Lock()
        self._known: dict[str, tuple[bytes, str]] = {}  # name: head and ETag as last seen; only ever saves a read
        # ETags our own writes have replaced: who answers with one answers from the past. Sealed bytes never repeat, so
        # neither do their ETags.
        self._superseded: OrderedDict[str, None] = OrderedDict()
        self._created: set[str] = set()  # names that held a head; nothing ever removes one

    @classmethod
    async def open(
        cls,
        options: S3Options,
        envelope: Envelope,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> S3LockStore:
        """Connect, and probe that the server honours conditional writes. Raises S3Unusable, Unavailable."""
        bucket = _Bucket(options, clock, uniform)
        await bucket.open()
        try:
            await _probe(bucket)
        except BaseException:
            await bucket.close()
            raise
        return cls(bucket, envelope)

    async def load(self, log_id: bytes) -> bytes | None:
        """See LockStore. Also raises StorageTampered."""
        return await self._bucket.run(_bound(self._load, self._name(log_id)))

    def _load(self, name: str) -> bytes | None:
        found = self._bucket.repeat("reading the head", lambda tries: self._read(name, tries))
        if found is None:
            return None
        head = self._envelope.open(name, found.body)
        self._remember(name, head, found.etag)
        return head

    def _read(self, name: str, tries: _Tries) -> _Object | None:
        found = self._bucket.get(name, tries)
        with self._guard:
            if found is None and name in self._created:
                raise _Again("it answers that there is no head, and there was one")
            if found is not None and found.etag in self._superseded:
                raise _Again("it answers a head that was replaced")
        return found

    async def create(self, log_id: bytes, head: bytes) -> None:
        """See LockStore."""
        await self._bucket.run(_bound(self._swap, self._name(log_id), None, head))

    async def replace(self, log_id: bytes, old: bytes, new: bytes) -> None:
        """See LockStore."""
        await self._bucket.run(_bound(self._swap, self._name(log_id), old, new))

    def _swap(self, name: str, old: bytes | None, new: bytes) -> None:
        """Create (`old` is None) or replace. `etag` is where `old` was seen; "" is not known."""
        sealed = self._envelope.seal(name, new)
        tries = _Tries(self._bucket, "writing the head")
        sent = refused = False
        with self._guard:
            known, etag = self._known.pop(name, (None, ""))
        if known != old:
            etag = ""
        while True:
            try:
                if sent or (old is not None and not etag):
                    found = self._read(name, tries)
                    if found is not None and found.body == sealed:
                        self._remember(name, new, found.etag, etag)
                        return
                    head = self._envelope.open(name, found.body) if found is not None else None
                    if head != old:
                        raise LockConflict(_conflict(old, head))
                    seen = found.etag if found is not None else ""
                    if refused and seen == etag:
                        raise _Again("the write is refused, yet the old head is answered")
                    refused, etag = False, seen
                    if found is not None and not seen:
                        raise S3Unusable(f"{self._bucket.options.place} names no ETag; it cannot hold a log's head")
                sent = True
                condition = {"IfMatch": etag} if old is not None else {"IfNoneMatch": "*"}
                self._remember(name, new, self._bucket.put(name, sealed, **condition), etag)
                return
            except _Refused:
                refused = True  # the next turn reads who is there
            except _Again as error:
                tries.again(error)

    def _remember(self, name: str, head: bytes, etag: str, replaced: str = "") -> None:
        with self._guard:
            if replaced and replaced != etag:
                self._superseded[replaced] = None
                if len(self._superseded) > KNOWN_HEADS:
                    self._superseded.popitem(last=False)
            if len(self._created) < KNOWN_HEADS:
                self._created.add(name)
            if etag:
                self._known.pop(name, None)
                self._known[name] = (head, etag)
                if len(self._known) > KNOWN_HEADS:
                    self._known.pop(next(iter(self._known)))

    def _name(self, log_id: bytes) -> str:
        if len(log_id) != LOG_ID_BYTES:
            raise LogError(f"a log ID has {LOG_ID_BYTES} bytes, not {len(log_id)}")
        return self._bucket.name(f"lock/{log_id.hex()}")

    async def close(self) -> None:
        """See LockStore."""
        await self._bucket.close()

    def describe(self) -> str:
        """See LockStore."""
        return f"heads in {self._bucket.options.place}/lock, conditional writes, sealed under {self._envelope.key_id}"


def _conflict(old: bytes | None, head: bytes | None) -> str:
    if old is None:
        return "there is a head already: this log exists"
    if head is None:
        return "there is no head: this log was never created, or its lock was removed"
    return "the lock holds another head than ours: another sequencer signs for this log"


async def _probe(bucket: _Bucket) -> None:
    """Whether conditional writes are honoured, one after the other and at once. Writes and removes objects below
    `probe/`. Raises S3Unusable, Unavailable."""
    tries = _Tries(bucket, "probing conditional writes")
    while True:
        name = bucket.name(f"probe/{secrets.token_hex(16)}")  # a new one: what an interrupted probe did is unknown
        try:
            await bucket.run(_bound(_probe_alone, bucket, name, tries))
            for race in range(PROBE_RACES):
                await _probe_race(bucket, f"{name}-{race}", {"IfNoneMatch": "*"}, 'a PUT with "If-None-Match: *"')
                etag = await bucket.run(_bound(bucket.put, f"{name}-{race}", b"between"))
                await _probe_race(bucket, f"{name}-{race}", {"IfMatch": etag}, "a PUT with If-Match")
            return
        except _Again as error:
            await bucket.run(_bound(tries.again, error))
        finally:
            names = [name, *(f"{name}-{race}" for race in range(PROBE_RACES))]
            try:
                await bucket.run(_bound(bucket.delete, names))
            except (_Again, Unavailable):
                pass  # a few bytes that no one reads


def _probe_alone(bucket: _Bucket, name: str, tries: _Tries) -> None:
    place = bucket.options.place

    def refused(body: bytes, told: str, **condition: str) -> None:
        try:
            bucket.put(name, body, **condition)
        except _Refused:
            return
        raise S3Unusable(f"{place} ignores conditions: {told} succeeded; keep the log's head in another lock store")

    def allowed(body: bytes, told: str, **condition: str) -> str:
        try:
            etag = bucket.put(name, body, **condition)
        except _Refused:
            raise S3Unusable(f"{place} refuses {told}; keep the log's head in another lock store") from None
        if not etag:
            raise S3Unusable(f"{place} names no ETag for what it stores; keep the log's head in another lock store")
        return etag

    first = allowed(b"first", 'a new object with "If-None-Match: *"', IfNoneMatch="*")
    refused(b"again", 'a second PUT with "If-None-Match: *"', IfNoneMatch="*")
    refused(b"wrong", "a PUT with a wrong If-Match", IfMatch='"00000000000000000000000000000000"')
    allowed(b"second", "a PUT with the right If-Match", IfMatch=first)
    refused(b"stale", "a PUT with the If-Match of an older version", IfMatch=first)
    found = bucket.get(name, tries)
    if found is None or found.body != b"second":
        raise S3Unusable(f"{place} does not answer what was written last; keep the log's head in another lock store")


async def _probe_race(bucket: _Bucket, name: str, condition: dict[str, str], told: str) -> None:
    start = threading.Barrier(min(PROBE_RACERS, bucket.options.connections))

    def racer() -> bool:
        start.wait(bucket.options.attempt_timeout_s)
        try:
            bucket.put(name, os.urandom(16), **condition)
            return True
        except _Refused:
            return False

    results = await asyncio.gather(*(bucket.run(racer) for _ in range(start.parties)), return_exceptions=True)
    for result in results:
        if isinstance(result, threading.BrokenBarrierError):
            raise _Again("the racers did not meet")
        if isinstance(result, BaseException):
            raise result
    if sum(result is True for result in results) != 1:
        raise S3Unusable(
            f"{bucket.options.place} does not check and write at once: {results.count(True)} of {start.parties} "
            f"who tried {told} at the same time succeeded; keep the log's head in another lock store"
        )


def _bound(function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
    return lambda: function(*arguments)


def _bound_tries(function: Callable[..., R], *arguments: Any) -> Callable[[_Tries], R]:
    return lambda _: function(*arguments)
