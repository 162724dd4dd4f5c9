"""Agents that choose the permutations a network trains on; they know only the Gymnasium API.

- `Agent`: the protocol every algorithm follows, `Transition` what it learns from, `Learner` what learns once an update
  (`base.py`).
- `Reinforce`: the paper's policy gradient, Eq. 9 and section 4.1 (`reinforce.py`).
- `RandomPolicy`, `InversePolicy`: what the paper compares it with, appendix F (`baselines.py`).
"""

from agents.base import Agent, Learner, Transition
from agents.baselines import InversePolicy, RandomPolicy
from agents.reinforce import Reinforce

__all__ = ["Agent", "InversePolicy", "Learner", "RandomPolicy", "Reinforce", "Transition"]
