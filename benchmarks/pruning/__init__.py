"""The steps of ``benchmarks/pruning.py``: questions, making, judging, the peer, the table."""
