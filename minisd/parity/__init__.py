"""Comparison with official weights and with the reference implementation: verification, benchmark, sampler order."""
