"""Benchmarks: how fast, measured where it can be believed (on a quiet machine, in ratios of one interleaved run)."""
