"""TrustChain: the certificate authority of STOQ, and the pure verifier of what it issues."""
