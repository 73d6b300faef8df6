"""Tests of what happens inside a guest."""
