"""Writes docs/INTEROP.md: what is proved by what, and the tables of results, one section of which a run
replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.interop.cases import CASES
from tests.interop.runner import CANNOT, FAIL, Result
from tests.peers.install import pinned

OURS_SECTION, AFXDP_SECTION, SELF_SECTION = "ours", "afxdp", "strangers"
OURS_SECTIONS = {"io_uring": OURS_SECTION, "afxdp": AFXDP_SECTION}
TITLES = {
    OURS_SECTION: "## Ours against the strangers",
    AFXDP_SECTION: "## Ours over AF_XDP against the strangers",
    SELF_SECTION: "## The strangers among themselves (the harness's own check)",
}
INTRODUCTION = """# Interoperability

Made by `make interop`, which runs `python -m tests.interop.run --table docs/INTEROP.md` (the second section
with `--backend afxdp`, the last with `--self`); do not edit by hand.

Every cell is a run over real UDP sockets in network namespaces of its own, through a relay that makes the
path bad in the way the case asks for (`tests/interop/relay.py`), with ALPN `hq-interop` on IPv6. A case
passes when the client reports success, the server is still well and ends cleanly, every file has the SHA-256
of the one that was served, and the case's own proof holds. The proof comes from the relay or from packets it
captured, opened by `tests/interop/decrypt.py`; never from an endpoint's word.
"""


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


def _cell(result: Result | None, notes: list[str]) -> str:
    if result is None:
        return "not run"
    if result.verdict not in (FAIL, CANNOT):
        return result.verdict
    if result.reason not in notes:
        notes.append(result.reason)
    word = "peer cannot" if result.verdict == CANNOT else "**fail**"
    return f"{word} [{notes.index(result.reason) + 1}]"


def _grid(results: Sequence[Result]) -> list[str]:
    pairs = list(dict.fromkeys((result.client, result.server) for result in results))
    by_key = {(result.case, result.client, result.server): result for result in results}
    notes: list[str] = []
    lines = ["| case | " + " | ".join(f"{client} → {server}" for client, server in pairs) + " |"]
    lines.append("|---" * (len(pairs) + 1) + "|")
    for case in CASES:
        if any(result.case == case for result in results):
            cells = [_cell(by_key.get((case, client, server)), notes) for client, server in pairs]
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"{number}. {' '.join(note.split())}" for number, note in enumerate(notes, 1)]
    return lines


def _section(section: str, results: Sequence[Result]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in pinned().items())
    lines = [TITLES[section], "", f"Columns are client → server. {versions}.", "", *_grid(results)]
    return "\n".join(lines).rstrip() + "\n"


def _cases() -> str:
    lines = ["## Cases and their proofs", "", "| case | what happens | what proves it |", "|---|---|---|"]
    lines += [f"| {case.name} | {case.what} | {case.proof_text} |" for case in CASES.values()]
    lines += [
        "",
        "What is allowed to the strangers, and to them only:",
        "",
        "- quic-go's server may go one datagram past the amplification limit: it sends while any credit is",
        "  left.",
        "- quic-go's client ends the version negotiation case at the Version Negotiation packet, without a",
        "  file, and with exit code 1 and the message of the wanted outcome.",
        "- qh3's server runs with a correction (`tests/peers/qh3_hq.py`): 2.1.0 loses datagrams it has built",
        "  when its amplification credit runs out.",
    ]
    return "\n".join(lines) + "\n"


def _old(content: str, section: str) -> str:
    begin, end = _marks(section)
    if begin in content and end in content:
        return content.split(begin, 1)[1].split(end, 1)[0].strip("\n") + "\n"
    return f"{TITLES[section]}\n\nNot run yet.\n"


def write(path: Path, results: Sequence[Result], section: str) -> None:
    """Write the document with this section new and the other as it was."""
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = [INTRODUCTION, _cases()]
    for name in (OURS_SECTION, AFXDP_SECTION, SELF_SECTION):
        begin, end = _marks(name)
        body = _section(name, results) if name == section else _old(content, name)
        parts.append(f"{begin}\n{body}{end}\n")
    path.write_text("\n".join(parts), encoding="utf-8")
