"""Where a monitor asks (control.ctlog.sources): what becomes of answers that fail to come."""

from __future__ import annotations

import pytest

from control.ctlog.errors import Unavailable
from control.ctlog.sources import PatientCarrier
from tests.ctlog.world import run_with_deadline


class _Failing:
    """A carrier whose next answers are these, and then 200: a status, or that there is none."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def request(self, method: str, path: str, query: object, body: bytes) -> tuple[int, bytes]:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else 200
        if answer is None:
            raise Unavailable("the line is dead")
        return answer, b""

    async def close(self) -> None:
        pass


def test_what_fails_in_passing_is_asked_again_after_longer_pauses() -> None:
    async def main() -> None:
        pauses: list[float] = []
        told: list[str] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        def patient(*answers: int | None) -> tuple[_Failing, PatientCarrier]:
            inner = _Failing(*answers)
            return inner, PatientCarrier(inner, told.append, retries=3, first=1.0, most=3.0, sleep=sleep)

        async def ask(carrier: PatientCarrier) -> int:
            return (await carrier.request("GET", "ct/v1/get-sth", {}, b""))[0]

        # What never answered is not waited for, and a refusal is an answer.
        inner, carrier = patient(None)
        with pytest.raises(Unavailable):
            await ask(carrier)
        inner, carrier = patient(200, 404)
        assert [await ask(carrier), await ask(carrier)] == [200, 404]
        assert (pauses, told, inner.asked) == ([], [], 2)
        # The longest pause, the last try, and what is told, which is the first failure since `begin`.
        inner, carrier = patient(200, None, 503, 429)
        assert [await ask(carrier), await ask(carrier)] == [200, 200]
        assert (pauses, told, inner.asked) == ([1.0, 2.0, 3.0], ["the line is dead"], 5)
        inner.answers += [503] * 4
        assert await ask(carrier) == 503
        inner.answers += [None] * 4
        with pytest.raises(Unavailable, match="dead"):
            await ask(carrier)
        assert len(told) == 1 and len(pauses) == 9
        carrier.begin()
        inner.answers.append(None)
        with pytest.raises(Unavailable):
            await ask(carrier)
        assert len(pauses) == 9

    run_with_deadline(main())
