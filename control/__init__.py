"""The control plane: TLS handshakes, and the `stoq` command."""
