"""Tests of the layout, the public names, the pages and the benchmarks."""
