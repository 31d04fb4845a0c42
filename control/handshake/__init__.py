"""The TLS 1.3 handshake of STOQ: `aioquic.tls.Context` behind the data plane's handshake seam.

credentials = load_credentials(Path("node-a.pem"), Path("node-a.key"))
trust = load_trust(Path("ca.pem"))
factory = TlsFactory(HandshakeConfig(credentials=credentials, trust=trust))
"""

from control.handshake.credentials import Credentials, Trust, load_credentials, load_trust
from control.handshake.factory import TlsFactory
from control.handshake.policy import HandshakeConfig, Profile
from control.handshake.processes import ProcessFactory

__all__ = [
    "Credentials",
    "HandshakeConfig",
    "ProcessFactory",
    "Profile",
    "TlsFactory",
    "Trust",
    "load_credentials",
    "load_trust",
]
