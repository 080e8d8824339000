"""Benchmarks of qatcore and of its peers: ``python -m bench``.  README.md says how to read the results."""
