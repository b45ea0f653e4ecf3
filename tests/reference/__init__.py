"""Oracles, tiny models and the tables of cases: no tests."""
