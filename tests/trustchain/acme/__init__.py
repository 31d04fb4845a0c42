"""Tests of the ACME server: by the `acme` library, by certbot, and by requests that no honest client sends."""
