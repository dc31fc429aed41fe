"""Comparison with official weights and with diffusers: verification, benchmark, sampler orders; see README.md."""
