"""How an ACME server is set up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from control.trustchain.acme.challenges import ValidationConfig
from dataplane.errors import StoqError


class AcmeConfigError(StoqError, ValueError):
    """A setting that an ACME server cannot have."""


@dataclass(frozen=True, slots=True)
class AcmeConfig:
    """`base_url`: where clients reach the application, with the prefix it is mounted under, as
    `https://ca.example:8443/acme`; all URLs are made from it, never from what a client says its host is.

    `external_account_required`: who registers needs a key from `Store.add_external_account` (RFC 8555 section 7.3.4).
    `domains`: DNS names lie in one of these; none given: any name that is proved. Times in seconds.
    `order_seconds`: what a client has for authorizations and finalizing. `finalize_wait_seconds`: how long an answer
    to `finalize` waits for the certificate before it says `processing`.
    """

    base_url: str
    external_account_required: bool = False
    terms_of_service: str | None = None
    website: str | None = None
    domains: Sequence[str] = ()
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    order_seconds: float = 24 * 3600.0
    finalize_wait_seconds: float = 5.0
    clean_seconds: float = 300.0
    validations_at_once: int = 32
    validations_waiting: int = 1024
    issuances_at_once: int = 256

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme != "https" or not url.netloc or url.query or url.fragment or self.base_url.endswith("/"):
            raise AcmeConfigError(f"{self.base_url!r} is not a base URL: https://HOST[:PORT][/PREFIX], no / at its end")

    @property
    def origin(self) -> str:
        """Scheme, host and port, as clients write them in `url`."""
        url = urlsplit(self.base_url)
        return f"{url.scheme}://{url.netloc}"
