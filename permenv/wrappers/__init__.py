"""Wrappers of `PermShuffle-v0`: other actions, observations and rewards for the same run.

| Wrapper              | Changes     | To                                                              | For         |
|----------------------|-------------|-----------------------------------------------------------------|-------------|
| `MixtureAction`      | action      | `Box(-1, 1, (C,))`: how a phase's samples are split over groups | all         |
| `PoolAction`         | action      | `Box(-1, 1, (1,))`: how much of Ψ is in play, easiest first     | all         |
| `ActionBlock`        | action      | `MultiDiscrete([C] * (K * T))`: all K actions of an update      | all         |
| `FlatJointAction`    | action      | `Discrete(C**T)`: the groups of all tasks as one number         | joint tasks |
| `StateHistory`       | observation | the states after the last few validations                       | all         |
| `RatioMatrix`        | observation | the matrix s, which ŝ summarises                                | all         |
| `ErrorAndProgress`   | observation | flattened, with the errors and the progress                     | all         |
| `RunSummary`         | observation | errors, their last reductions, two medians, and the progress    | all         |
| `ErrorReduction`     | reward      | how far the error fell since the last validation                | all         |
| `CrossEntropyReward` | reward      | Eq. 7 of the cross-entropy instead of the error                 | all         |
| `NormalizedReward`   | reward      | divided by the root mean square of the run's rewards so far     | all         |
| `FiniteHorizon`      | end         | `terminated` after the last update, instead of `truncated`      | all         |

C is the number of groups and T the number of ordering tasks: 1, or more in a joint task (2 in "spatiotemporal"). A
*phase* is the stretch between two validations: the iterations of an update, or the free iterations before it.

These wrappers hold no state of their own. They read what they show from the run (`env.unwrapped.records`, `.rewards`,
`.validation`, `.np_random`), so `fork`, `save`, `reset(options={"checkpoint": path})` and pickling work through any
stack of them, and a run saved under one stack can continue under another. `fork(env)` copies a run together with its
wrappers.

Wrappers that would hide one another are refused when they are constructed. Allowed are:

- one action wrapper;
- `StateHistory`, `RatioMatrix` or `RunSummary`, directly over ŝ, and `ErrorAndProgress` over one of them or over ŝ;
- `ErrorReduction` or `CrossEntropyReward`, and `NormalizedReward` over either of them or over the environment's reward.

Wrappers that change different things can be stacked in any order with the same result. It is faster to apply the action
wrapper first: observations are then computed once per phase instead of at each of its thousands of steps.

Example:
    >>> env = MixtureAction(gym.make("PermShuffle-v0"))
    >>> env = NormalizedReward(ErrorAndProgress(StateHistory(env, length=3)))
"""

from permenv.wrappers.actions import PHASE_WRAPPERS, ActionBlock, FlatJointAction, MixtureAction, PoolAction
from permenv.wrappers.base import fork
from permenv.wrappers.horizon import FiniteHorizon
from permenv.wrappers.observations import ErrorAndProgress, RatioMatrix, RunSummary, StateHistory
from permenv.wrappers.rewards import CrossEntropyReward, ErrorReduction, NormalizedReward

__all__ = [
    "PHASE_WRAPPERS",
    "ActionBlock",
    "CrossEntropyReward",
    "ErrorAndProgress",
    "ErrorReduction",
    "FiniteHorizon",
    "FlatJointAction",
    "MixtureAction",
    "NormalizedReward",
    "PoolAction",
    "RatioMatrix",
    "RunSummary",
    "StateHistory",
    "fork",
]
