"""ACME (RFC 8555): certificates of the TrustChain CA for clients such as certbot. `acme_application` is the way in."""

from control.trustchain.acme.addresses import AddressPolicy, Resolver, SystemResolver
from control.trustchain.acme.challenges import ValidationConfig
from control.trustchain.acme.config import AcmeConfig
from control.trustchain.acme.issuing import Issuer
from control.trustchain.acme.model import Limits
from control.trustchain.acme.server import acme_application
from control.trustchain.acme.store import Store

__all__ = [
    "AcmeConfig",
    "AddressPolicy",
    "Issuer",
    "Limits",
    "Resolver",
    "Store",
    "SystemResolver",
    "ValidationConfig",
    "acme_application",
]
