"""What the entry points and studies share.

Imports go down this list only:

- `script`: running a script, its errors and stops.
- `sweeps/`: many runs, each once, in processes or on Ray; searches over settings.
- `evaluation/`: the protocols of the paper's tables.
- `agent_runs`: one run of any agent by name, or of a policy learned across runs.
- `learned`: the policies learned across runs.
- `training/`: one training run: its options, its folder, what is recorded and logged, its evaluation.
- `commands`: scripts that are run one after the other.
- `reports/`: statistics, tables, pictures.
- `options`, `torchrun`, `machine`, `content`: command lines, ranks, and what numbers depend on.
- `files`: files that are written whole or not at all.
"""
