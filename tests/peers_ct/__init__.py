"""Strangers to the Certificate Transparency log: Go programs, pinned."""
