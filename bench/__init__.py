"""Benchmarks against the peers: ``python -m bench``.  README.md says how to read them."""
