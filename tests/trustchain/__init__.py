"""Tests of TrustChain: the authority, its keys, its records, and what strangers make of its certificates."""
