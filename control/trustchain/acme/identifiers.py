"""Which identifiers an order may ask for: DNS names (RFC 8555 section 9.7.7) and IPv6 addresses (RFC 8738)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from control.trustchain.acme.addresses import AddressPolicy
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind, malformed
from control.trustchain.errors import BadRequest
from control.trustchain.profiles import parse_dns

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # Both are IPv4 to some resolvers.
_SHOWN_CHARACTERS = 253


def check_all(identifiers: Sequence[Identifier], policy: AddressPolicy, domains: Sequence[str]) -> list[Identifier]:
    """The identifiers, each once, in the order given. `domains`: those that names must lie in; none: any.

    Raises AcmeProblem, with a sub-problem for each that is refused when there are several (section 6.7.1)."""
    problems: list[AcmeProblem] = []
    for identifier in dict.fromkeys(identifiers):
        try:
            check(identifier, policy, domains)
        except AcmeProblem as problem:
            problems.append(problem)
    if not problems:
        return list(dict.fromkeys(identifiers))
    if len(identifiers) == 1:
        raise problems[0]
    kinds = {problem.kind for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else Kind.COMPOUND
    raise AcmeProblem(kind, f"{len(problems)} of the identifiers are refused: {problems[0]}", subproblems=problems)


def check(identifier: Identifier, policy: AddressPolicy, domains: Sequence[str]) -> None:
    """Raises AcmeProblem unless a certificate can be asked for this."""
    if identifier.type == "ip":
        _check_address(identifier, policy)
    elif identifier.type == "dns":
        _check_name(identifier, domains)
    else:
        raise AcmeProblem(
            Kind.UNSUPPORTED_IDENTIFIER,
            f"identifiers are of type dns or ip, not {identifier.type[:40]!r}",
        )


def _rejected(identifier: Identifier, why: str) -> AcmeProblem:
    shown = Identifier(identifier.type, identifier.value[:_SHOWN_CHARACTERS])
    return AcmeProblem(Kind.REJECTED_IDENTIFIER, f"no certificate for {shown.value!r}: {why}", identifier=shown)


def _check_address(identifier: Identifier, policy: AddressPolicy) -> None:
    try:
        address = ipaddress.ip_address(identifier.value)
    except ValueError:
        raise malformed(f"{identifier.value[:64]!r} is not an IP address") from None
    if isinstance(address, ipaddress.IPv4Address):
        raise _rejected(identifier, "it is an IPv4 address, and STOQ is IPv6-only; ask for an IPv6 address")
    why = policy.refusal(address)
    if why is not None:
        raise _rejected(identifier, why)
    if address.scope_id is not None or str(address) != identifier.value:
        raise malformed(f"write the address as {address} (RFC 8738 section 3)")


def _check_name(identifier: Identifier, domains: Sequence[str]) -> None:
    try:
        name = parse_dns(identifier.value, wildcards=True)
    except BadRequest as error:
        raise _rejected(identifier, str(error)) from None
    if name != identifier.value:
        raise _rejected(identifier, f"write it as {name}")
    name = name.removeprefix("*.")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise _rejected(identifier, "it looks like an IPv4 address; addresses have type ip, and STOQ is IPv6-only")
    if domains and not any(name == domain or name.endswith("." + domain) for domain in domains):
        raise _rejected(identifier, f"names must lie in {', '.join(domains)}")


def split_wildcard(identifier: Identifier) -> tuple[Identifier, bool]:
    """What is to be proved for an identifier: the name without `*.`, and whether there was one (section 7.1.3)."""
    if identifier.type == "dns" and identifier.value.startswith("*."):
        return Identifier("dns", identifier.value[2:]), True
    return identifier, False
