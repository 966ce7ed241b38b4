"""Tests of the benchmark itself: quick, and with neither shoal nor Ray."""
