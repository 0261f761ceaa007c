"""Studies that count how often the guarantees hold under faults. Each study is a table of cells, run as real commands.

PYTHONPATH=benchmarks python -m faults.kills --brief

A study writes `benchmarks/results/faults/<study>.json`; `python -m faults.tables` puts the counts into the docs.
"""
