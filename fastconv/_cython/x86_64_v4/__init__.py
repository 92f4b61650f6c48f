"""Kernels compiled for x86_64_v4: put here by the build."""
