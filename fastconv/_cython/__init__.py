"""The Cython back end: one package per ISA level, filled by the build from src_cython/."""
