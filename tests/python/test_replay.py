"""Early data is taken once: the replay register."""

from __future__ import annotations

import random

from control.handshake.replay import ReplayRegister


def take(register: ReplayRegister, identity: bytes, now: float, *, sent: float | None = None) -> bool:
    """A flight made at `sent` (now) with a ticket issued at 0 comes at `now`."""
    return register.take(identity, now=now, server_age=now, client_age=now if sent is None else sent)


def test_once() -> None:
    register = ReplayRegister(0.0, warm=True)
    assert take(register, b"ticket", 5.0)
    assert not take(register, b"ticket", 5.0) and not take(register, b"ticket", 6.0)
    assert take(register, b"another", 6.0)
    assert register.refused_replays == 2


def test_nothing_is_taken_before_the_window_is_known() -> None:
    register = ReplayRegister(100.0, window=10.0)
    assert not take(register, b"ticket", 109.9), "it may have been taken before a restart"
    assert take(register, b"ticket", 110.0)


def test_a_copy_is_never_taken_again() -> None:
    """Whenever the original comes and whenever its copies do, fresh or stale, with clocks that differ."""
    rng = random.Random(1)
    for _ in range(2000):
        register = ReplayRegister(0.0, window=10.0, warm=True)
        sent = rng.uniform(-15.0, 15.0) + 100.0  # By the client's clock, which is off.
        times = sorted(rng.uniform(80.0, 140.0) for _ in range(6))
        assert sum(take(register, b"ticket", now, sent=sent) for now in times) <= 1


def test_a_stale_copy_of_a_flight_that_never_came() -> None:
    register = ReplayRegister(0.0, window=10.0, warm=True)
    assert not take(register, b"ticket", 50.0, sent=39.0)
    assert not register.take(b"ticket", now=50.0, server_age=50.0, client_age=float("nan"))
    assert register.refused_stale == 2 and len(register) == 0


def test_a_full_register_refuses_and_recovers() -> None:
    register = ReplayRegister(0.0, window=10.0, capacity=100, warm=True)
    assert all(take(register, b"%d" % n, 1.0) for n in range(100))
    assert not take(register, b"one more", 1.0)
    assert (register.refused_full, len(register)) == (1, 100)
    assert take(register, b"one more", 22.0) and len(register) == 1
