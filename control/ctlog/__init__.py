"""A Certificate Transparency log: RFC 6962 (v1) and static-ct-api from one tree, and what its users need of it.

Read `structs` (what is signed and hashed), `merkle` (the tree), `tiles` (where it lies), `sequencer` (how it grows) in
this order.
"""
