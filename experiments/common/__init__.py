"""What the entry points and studies share.

Imports go down this list only:

- `script`: running a script, its errors and stops.
- `sweeps/`: many runs, each once, in processes or on Ray; searches over settings.
- `evaluation/`: the protocols of the paper's tables.
- `agent_runs`, `learned`: one run of any agent by name, or of a policy learned across runs.
- `training/`: one training run: its options, its folder, what is recorded and logged, its evaluation.
- `reports/`: statistics, tables, pictures.
- `options`, `torchrun`, `machine`, `content`: command lines, ranks, and what numbers depend on.
- `commands`, `files`: scripts that are run one after the other; files that are written whole or not at all.
"""
