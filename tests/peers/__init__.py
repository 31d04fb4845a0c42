"""Third-party QUIC endpoints the interoperability tests run against, pinned."""
