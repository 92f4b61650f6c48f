"""Kernels compiled for baseline: put here by the build."""
