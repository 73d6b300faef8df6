"""Reads kernels and initrds: what a guest's kernel can do. Nothing here writes a file."""
