"""Entry points that combine `permenv` and `agents`, and the studies, benchmarks and figures built on them.

- `reinforce.py`, `sb3.py`, `leaderboard.py`: the entry points.
- `common/`: what they share, one purpose a module.
- `studies/`: measurements behind the defaults. `benchmarks/`: how fast it is. `paper/`: the paper's tables and figures.
- `results/`: what the scripts wrote; its README says which command wrote which file.
"""
