"""Interoperability with QUIC implementations that are not ours."""
