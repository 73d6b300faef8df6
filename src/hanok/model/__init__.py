"""Frozen, validated data: what users ask for, what is kept, what is shown. No behaviour, no I/O."""
