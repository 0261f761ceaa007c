"""Counts what the guarantees promise under faults: each study is a table of cells, run as real training commands.

PYTHONPATH=benchmarks python -m faults.kills --brief

A study writes `benchmarks/results/faults/<study>.json`; `python -m faults.tables` puts the counts into the docs.
"""
