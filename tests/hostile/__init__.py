"""Garbage on the wire against a live node."""
