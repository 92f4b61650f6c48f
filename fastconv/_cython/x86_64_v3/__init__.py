"""Kernels compiled for x86_64_v3: put here by the build."""
