"""Early data is taken once: the server's defence against replay of 0-RTT, RFC 8446 section 8.

Whoever copies a client's first flight can send it again, and the binder in it is still good. So the server
remembers what it has taken (section 8.1, single use) for as long as a copy could pass for fresh (section
8.3), and refuses early data whenever it cannot tell. A refusal costs the client a round trip, nothing else.

      ticket's age by its own clock and by ours differ by more than `window`  ─▶ refuse
      identity is in the register                                            ─▶ refuse: a replay
      register is full of identities that may still be replayed              ─▶ refuse
      the register is younger than the window: what came before is unknown   ─▶ refuse
      else                                                                   ─▶ take, and remember

A register is this process's own. Servers that share ticket keys and do not share a register each take early
data once (section 8.1): they must not share the keys of tickets that permit it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

WINDOW_SECONDS = 10.0  # RFC 8446 section 8.3: some ten seconds for clients on the Internet.
CAPACITY = 65536  # Identities; 6,500 resumptions a second with the window. About 150 bytes each.


class ReplayRegister:
    """See the module's text. `now` is any clock that never goes back, in seconds."""

    def __init__(
        self, now: float, *, window: float = WINDOW_SECONDS, capacity: int = CAPACITY, warm: bool = False
    ) -> None:
        """`warm`: nothing can have been taken before: the ticket keys are as young as this register."""
        self._window = window
        self._capacity = capacity
        self._from = now if warm else now + window
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # By when each may be forgotten, soonest first.
        self.refused_replays = 0
        self.refused_full = 0
        self.refused_stale = 0

    def __len__(self) -> int:
        return len(self._seen)

    def take(self, identity: bytes, *, now: float, server_age: float, client_age: float) -> bool:
        """May the early data that came with this ticket be taken? True at most once for each `identity`.

        The ages are the ticket's, in seconds: by our clock since it was issued, and as the client says.
        """
        self._forget(now)
        # The client's is behind ours by the way there and back; a copy that was kept falls behind further.
        if not abs(server_age - client_age) <= self._window or now < self._from:
            self.refused_stale += 1
            return False
        key = hashlib.sha256(identity).digest()
        if key in self._seen:
            self.refused_replays += 1
            return False
        if len(self._seen) >= self._capacity:
            self.refused_full += 1
            return False
        # A client whose clock is ahead by the window passes for fresh until it is behind by as much.
        self._seen[key] = now + 2 * self._window
        return True

    def _forget(self, now: float) -> None:
        while self._seen:
            key, until = next(iter(self._seen.items()))
            if until >= now:
                return
            del self._seen[key]
