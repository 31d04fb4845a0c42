"""Calls over streams: what is well made is answered; what is not gets a typed failure, and takes nothing from others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from control.handshake import HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_JOIN
from control.rpc import Bounds, CallFailed, FrameError, RpcClient, RpcError
from control.rpc.frames import MAX_FRAME_BYTES, read_frame
from control.rpc.messages import Answer, Failure, Request
from control.rpc.server import LOOK_SECONDS
from control.trustchain.bundle import MAX_BUNDLE_BYTES
from dataplane import Address, Connection, Datapath, Stream, StreamError
from tests.rpc.peers import AUTHORITY, NODES, Denied, Echo, Peers, config, peers, until

BODY = msgspec.Raw(msgspec.msgpack.encode(Echo("hello")))


def _run(main: Callable[[Peers], Awaitable[None]], bounds: Bounds | None = None, **more: object) -> None:
    async def run() -> None:
        async with peers(bounds or Bounds(), **more) as made:
            await main(made)

    asyncio.run(run())


def _request(method: str = "echo", **other: object) -> bytes:
    values = {"method": method, "id": bytes(16), "time": 0.0, "body": BODY} | other
    return msgspec.msgpack.encode(Request(**values))  # type: ignore[arg-type]


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def _said(connection: Connection, data: bytes, *, end: bool = True) -> Answer | Failure:
    """What is answered to these bytes on a stream of their own."""
    async with asyncio.timeout(10), await connection.open_stream() as stream:
        stream.write(data)
        if end:
            stream.write_eof()
        return await read_frame(stream, Answer | Failure)  # type: ignore[arg-type]


async def _failure(connection: Connection, data: bytes, *, end: bool = True) -> str:
    found = await _said(connection, data, end=end)
    assert isinstance(found, Failure), found
    return found.kind


def test_calls_and_failures() -> None:
    """An answer, many at once, each error as what it is; an unexpected one without what it says."""

    async def main(p: Peers) -> None:
        calls = RpcClient(await p.connect(), {"Denied": Denied})
        assert (await calls.call("echo", Echo("a", 1), Echo)).text.startswith("a from node-0 (")
        many = await asyncio.gather(*(calls.call("echo", Echo(str(one)), Echo) for one in range(200)))
        assert [one.text for one in many] == [str(one) for one in range(200)]
        with pytest.raises(Denied, match="not for you"):
            await calls.call("denied", Echo("a"), Echo)
        with pytest.raises(CallFailed) as failed:
            await calls.call("broken", Echo("a"), Echo)
        assert failed.value.kind == "Internal" and "secret" not in str(failed.value)
        with pytest.raises(CallFailed, match="'nothing' is not served here; these are: broken, count") as failed:
            await calls.call("nothing", Echo("a"), Echo)
        assert failed.value.kind == "UnknownMethod"
        assert [one.count async for one in calls.follow("count", Echo("a", 5), Echo)] == [0, 1, 2, 3, 4]
        assert (await calls.call("large", Echo("", 9_000_000), Echo)).text == "x" * 9_000_000
        with pytest.raises(CallFailed, match="ask for less") as failed:
            await calls.call("large", Echo("", MAX_FRAME_BYTES), Echo)
        assert p.server.failures == 4

    _run(main)


def test_another_protocol_has_other_methods() -> None:
    """A method is served on the protocols it names, to callers with and without a certificate."""

    async def main(p: Peers) -> None:
        for node in (None, 0):
            calls = RpcClient(await p.connect(node, ALPN_JOIN))
            said = (await calls.call("echo", Echo("a", 1), Echo)).text
            assert said.startswith("a from anonymous at [::1]:")
            for method in ("broken", "denied", "large"):
                with pytest.raises(CallFailed, match="is not served here; these are: echo, hold, wait"):
                    await calls.call(method, Echo("a"), Echo)

    _run(main)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "Malformed"),
        (b"\0\0", "Malformed"),
        (b"\0\0\0\0", "Malformed"),
        (b"\0\0\0\x05abc", "Malformed"),
        (b"\xff\xff\xff\xff", "Malformed"),
        ((2 << 20).to_bytes(4, "big"), "Malformed"),
        (((2 << 20) + 1).to_bytes(4, "big"), "Malformed"),
        (_framed(b"\xc1" * 9), "Malformed"),
        (_framed(b"\x91" * 100_000), "Malformed"),
        (_framed(b"GET / HTTP/1.1\r\n\r\n"), "Malformed"),
        (_framed(msgspec.msgpack.encode(Answer(BODY))), "Malformed"),
        (_framed(msgspec.msgpack.encode({"type": "request", "method": 7})), "Malformed"),
        (_framed(_request() + b"more"), "Malformed"),
        (_framed(_request(body=msgspec.Raw(msgspec.msgpack.encode({"text": 5})))), "Malformed"),
        (_framed(_request(body=msgspec.Raw(b"\x91" * 50_000 + b"\xc0"))), "Malformed"),
        (_framed(_request(id=bytes(15))), "BadVersion"),
        (_framed(_request(version=2)), "BadVersion"),
        (_framed(_request(method="x" * 100_000)), "UnknownMethod"),
        (_framed(_request(method="\0\n\x1b[31m")), "UnknownMethod"),
    ],
    ids=lambda one: one if isinstance(one, str) else repr(one[:12]),
)
def test_what_is_malformed(data: bytes, kind: str) -> None:
    """A typed failure, whatever it is; the connection is as good as before."""

    async def main(p: Peers) -> None:
        connection = await p.connect()
        assert await _failure(connection, data) == kind
        assert (await RpcClient(connection).call("echo", Echo("still here"), Echo)).text == "still here"

    _run(main)


SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_requests(seed: int) -> None:
    """Bits flipped, pieces cut, doubled, swapped: every stream gets an answer or a typed failure, never `Internal`."""

    async def main(p: Peers) -> None:
        dice = random.Random(seed)
        connection = await p.connect()
        methods = ("echo", "denied", "count", "none")
        good = [_framed(_request(one, id=dice.randbytes(16), time=dice.random() * 2e9)) for one in methods]
        mutants = [_mutated(dice.choice(good), dice) for _ in range(150)]
        said = await asyncio.gather(*(_outcome(connection, one) for one in mutants))
        bad = [(one, data) for one, data in zip(said, mutants, strict=True) if one in ("Internal", "silence")]
        assert not bad, f"seed {seed}: {bad[:3]}"
        assert len(set(said)) > 2, f"seed {seed}: {set(said)}"
        assert (await RpcClient(connection).call("echo", Echo("still here"), Echo)).text == "still here"

    _run(main)


def _mutated(data: bytes, dice: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(made)) if made else 0
        match dice.randrange(6):
            case 0 if made:
                made[at] ^= 1 << dice.randrange(8)
            case 1:
                del made[at : at + dice.randint(1, 9)]
            case 2:
                made[at:at] = made[at : at + dice.randint(1, 9)]
            case 3:
                made[at:at] = dice.randbytes(dice.randint(1, 9))
            case 4 if len(made) > 4:
                made[:4] = (len(made) - 4).to_bytes(4, "big")
            case _ if made:
                made[at] = dice.choice((0x00, 0x7F, 0x80, 0x9F, 0xC1, 0xC6, 0xDD, 0xFF))
    return bytes(made)


async def _outcome(connection: Connection, data: bytes) -> str:
    try:
        found = await _said(connection, data)
    except FrameError as error:
        # `count` with nothing to count ends without an answer.
        return "ended" if "ended" in str(error) else f"{error}"
    except TimeoutError:
        return "silence"
    return found.kind if isinstance(found, Failure) else "answer"


def test_who_is_slow() -> None:
    """A request that does not come is given up, and so is an answer that nobody takes; nobody else waits for either."""

    async def main(p: Peers) -> None:
        slow, quick = await p.connect(0), RpcClient(await p.connect(1))
        halves = [asyncio.ensure_future(_failure(slow, _framed(_request())[:9], end=False)) for _ in range(20)]
        await until(lambda: p.server.at_work == 20, "they are there")
        assert (await quick.call("echo", Echo("a"), Echo)).text == "a"
        assert await asyncio.gather(*halves) == ["TooSlow"] * 20
        async with await slow.open_stream() as stream:
            RpcClient(slow)._request(stream, "flood", Echo(""), None)
            await until(lambda: p.methods.running == 1, "it is being answered")
            assert (await quick.call("echo", Echo("a"), Echo)).text == "a"
            await until(lambda: p.methods.ended == 1 and p.server.following == 0, "it is given up")
            with pytest.raises(StreamError):
                while await stream.read():
                    pass
        assert slow.usable

    _run(main, Bounds(request_seconds=0.3, answer_seconds=0.3), max_stream_data=65536, max_stream_data_limit=65536)


def test_followers_that_leave() -> None:
    """One that closes its stream, one that is cancelled, one that closes its connection, one whose process is gone: each
    is noticed though there is nothing to tell it."""

    async def main(p: Peers) -> None:
        connections = [await p.connect(one) for one in (0, 1, 2)]
        answers = [RpcClient(one).follow("wait", Echo(""), Echo) for one in connections]
        assert [(await anext(one)).text for one in answers] == ["begun"] * 3
        assert p.server.following == 3 and p.server.at_work == 0
        await answers[0].aclose()  # type: ignore[attr-defined]
        await until(lambda: p.server.following == 2, "the stream's end", LOOK_SECONDS + 2)
        waiting = asyncio.ensure_future(anext(answers[1]))
        await asyncio.sleep(0)
        waiting.cancel()
        await until(lambda: p.server.following == 1, "cancelled", LOOK_SECONDS + 2)
        connections[2].close()
        await until(lambda: p.server.following == 0, "the connection's end")
        assert p.methods.ended == 3 and p.methods.running == 0
        assert connections[0].usable and connections[1].usable

    _run(main)


def test_bounds() -> None:
    """Of all, of one caller over all its connections, of those without a certificate; who follows is counted apart. What
    ends makes room."""

    async def main(p: Peers) -> None:
        both = [await p.connect(0), await p.connect(0)]
        held = [asyncio.ensure_future(RpcClient(both[one % 2]).call("hold", Echo(""), Echo)) for one in range(4)]
        await until(lambda: p.methods.running == 4, "held")
        for connection in both:
            with pytest.raises(CallFailed, match="4 calls at once of one caller") as busy:
                await RpcClient(connection).call("echo", Echo(""), Echo)
            assert busy.value.kind == "Busy"
        nobody = [await p.connect(None, ALPN_JOIN) for _ in range(2)]
        held += [asyncio.ensure_future(RpcClient(one).call("hold", Echo(""), Echo)) for one in nobody]
        await until(lambda: p.methods.running == 6, "held")
        with pytest.raises(CallFailed, match="2 calls at once without a certificate"):
            await RpcClient(nobody[0]).call("echo", Echo(""), Echo)
        other = RpcClient(await p.connect(1))
        followed = [other.follow("wait", Echo(""), Echo) for _ in range(3)]
        assert [(await anext(one)).text for one in followed] == ["begun"] * 3
        with pytest.raises(CallFailed, match="3 calls that follow of one caller"):
            await anext(other.follow("wait", Echo(""), Echo))
        held.append(asyncio.ensure_future(other.call("hold", Echo(""), Echo)))
        await until(lambda: p.methods.running == 10, "held")
        with pytest.raises(CallFailed, match="7 calls at once in all"):
            await other.call("echo", Echo(""), Echo)
        p.methods.release.set()
        await asyncio.gather(*held)
        assert (await RpcClient(both[0]).call("echo", Echo("room"), Echo)).text == "room"
        await until(lambda: p.server.following == 0 and p.server.at_work == 0, "all ended")

    _run(main, Bounds(calls=7, of_one=4, anonymous=2, follow_of_one=3))


def test_without_a_certificate_requests_are_small() -> None:
    """Nobody fills our memory who did not say who they are."""

    async def main(p: Peers) -> None:
        body = msgspec.Raw(msgspec.msgpack.encode(Echo("x" * 100_000)))
        data = _framed(_request(body=body))
        assert isinstance(await _said(await p.connect(0), data), Answer)
        assert await _failure(await p.connect(None, ALPN_JOIN), data) == "Malformed"

    _run(main)


def test_callers_that_vanish() -> None:
    """In the middle of a request, while it is worked on, while the answer comes: nothing is left of them."""

    async def main(p: Peers) -> None:
        for data in (_framed(_request())[:20], _framed(_request("hold")), _framed(_request("flood"))):
            connection = await p.connect()
            stream = await connection.open_stream()
            stream.write(data)
            await stream.wait_acknowledged()
            await until(lambda: p.server.at_work + p.server.following == 1, "it is there")
            connection.close(7, "gone")
            p.methods.release.set()
            await until(lambda: p.server.at_work + p.server.following == 0, "it has gone")
            p.methods.release.clear()
        assert p.methods.running == 0

    _run(main)


# ---- what servers do to callers ----

Serve = Callable[[Stream], Awaitable[None]]


async def _answered(serve: Serve, *, timeout: float = 10.0) -> Exception:
    """What a caller makes of a server that does this with each stream."""
    factory = TlsFactory(HandshakeConfig(NODES[0], AUTHORITY.trust))
    bound = config(server=True, bind=Address("::1", 0))
    async with Datapath(bound, factory) as serving, Datapath(config(), factory) as calling:
        calls = RpcClient(await calling.connect(serving.local_address, server_name="::1"))

        async def answer() -> None:
            stream = await (await serving.accept()).accept_stream()
            await serve(stream)

        task = asyncio.create_task(answer())
        try:
            await calls.call("echo", Echo("a"), Echo, timeout=timeout)
        except Exception as error:
            return error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    raise AssertionError("it was taken for an answer")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "there was no message"),
        (b"\0\0\0\x50abc", "ended the stream in the middle"),
        (b"\xff\xff\xff\xff", "announces a frame of 4294967295 bytes"),
        (_framed(b"\xc1" * 64), "malformed"),
        (_framed(b"\x91" * 100_000), "malformed"),
        (_framed(_request()), "malformed"),
        (_framed(msgspec.msgpack.encode(Answer(msgspec.Raw(b"\xa3abc")))), "answer is malformed"),
        (_framed(msgspec.msgpack.encode(Answer(msgspec.Raw(b"\x91" * 50_000 + b"\xc0")))), "malformed"),
        (_framed(msgspec.msgpack.encode(Failure("AccessDenied", "no"))), "no"),
    ],
    ids=lambda one: one if isinstance(one, str) else repr(one[:12]),
)
def test_a_server_that_answers_nonsense(data: bytes, words: str) -> None:
    """An error of calls that says so."""

    async def serve(stream: Stream) -> None:
        async with stream:
            stream.write(data)

    error = asyncio.run(_answered(serve))
    assert isinstance(error, RpcError) and words in str(error), repr(error)


def test_a_server_that_does_not_answer() -> None:
    """The caller does not wait for ever."""

    async def serve(stream: Stream) -> None:
        await asyncio.Event().wait()

    error = asyncio.run(_answered(serve, timeout=0.2))
    assert isinstance(error, RpcError) and "did not answer echo within 0.2 s" in str(error)


def test_a_server_that_resets() -> None:
    """The stream's own error."""

    async def serve(stream: Stream) -> None:
        stream.reset(9)

    assert isinstance(asyncio.run(_answered(serve)), StreamError)


def test_the_largest_trust_bundle_fits() -> None:
    """Else nodes would hear of no revocation any more, once there are enough."""
    assert MAX_FRAME_BYTES > MAX_BUNDLE_BYTES + 4096
