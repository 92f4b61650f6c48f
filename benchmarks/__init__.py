"""Benchmarks of fastconv: ``asv`` (bench_*.py), a table in the terminal (``python -m benchmarks``), and a
comparison with other libraries (``python -m benchmarks.peers``). How to run them: docs/benchmarks.md.
"""
