"""The protocols of the paper's tables by name: what they evaluate, and beside which numbers of the paper."""
