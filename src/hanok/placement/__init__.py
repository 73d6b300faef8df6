"""Capacity arithmetic and admission: pure functions, no I/O."""
