"""Tests of the STOQ appliance; helpers that are no tests themselves live beside them."""
