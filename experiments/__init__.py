"""Entry points that combine `permenv` and `agents`, and the studies, benchmarks and figures built on them.

- `reinforce.py`, `sb3.py`: a training run. `across_runs.py`: a policy that learns from many runs. `leaderboard.py`,
  `search.py`: many runs compared.
- `evaluate.py`, `extract.py`, `export.py`: what a trained network is worth, its features of your images, its weights.
- `common/`: what they share, in packages of one purpose each.
- `studies/`: measurements behind the defaults. `benchmarks/`: how fast it is. `paper/`: the paper's tables and figures.
- `results/`: what the scripts wrote; its README says which command wrote which file.
"""
