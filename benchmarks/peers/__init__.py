"""fastconv beside other libraries: ``python -m benchmarks.peers --help``, and docs/benchmarks.md for the rules.

contestants.py   who takes part: a name, its adapter file, its options
case.py          one layer as a problem: data, expected result, what an adapter hands back
peer_*.py        one adapter a library; third parties are imported inside functions only
machine_*.py     adapters of the machine itself: FMA peak and memcpy, measured in the same turns
worker.py        a process per contestant, pinned to the same CPUs, measuring when it is told to
race.py          turns, verification, results
report.py        tables
"""
