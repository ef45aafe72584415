"""Fuzzing of everything that parses what a peer sent: see docs/testing.md."""
