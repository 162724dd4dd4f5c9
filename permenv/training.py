"""SGD on permuted mini-batches: the network, its momentum and the moving average of its weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from permenv.batch_norm import synchronise
from permenv.config import Config, ConfigurationError
from permenv.device import resolve_precision
from permenv.distributed import ALONE, Ranks
from permenv.heads import HeadFactory, PairwiseHead, SpatialHead, TemporalHead, at_least_float32
from permenv.networks import BACKBONES, OrderingNetwork, build_network
from permenv.schema import COUNT, Anything, Array, Either, Explained, Fields, OneOf, Schema, Where


@dataclass(frozen=True, eq=False)
class Batch:
    """A mini-batch of one task, or this rank's shard of it.

    Attributes:
        pieces: (B, n, *piece) float32, permuted, augmented and normalised, on the network's device.
        labels: (B,) int, the permutation of each sample as an index into Ψ.
    """

    pieces: Tensor
    labels: np.ndarray


class Trainer:
    """The network Φ in training.

    Attributes:
        network: The live weights.
        iteration: SGD iterations done.

    Args:
        config: All numbers.
        heads: By task, a function that makes its head.
        piece_shape: Shape of a piece, the same for all tasks.
        device: Where the network lives.
        seed: Decides the initial weights.
        ranks: The processes that train the network together, each on its shard of every mini-batch.

    Raises:
        ConfigurationError: If the backbone cannot take pieces of the configured size, several ranks cannot divide a
            mini-batch or share the backbone's batch normalisation, or weights are to be averaged and the backbone
            cannot be copied.
    """

    def __init__(
        self,
        config: Config,
        heads: Mapping[str, HeadFactory],
        piece_shape: Sequence[int],
        device: torch.device,
        seed: int,
        ranks: Ranks = ALONE,
    ):
        ranks.require_shards(config)
        self.config = config
        self.device = device
        self._ranks = ranks
        try:
            network = build_network(config.backbone, heads, piece_shape=piece_shape, seed=seed)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        synchronise(network, ranks, device)
        self.network: OrderingNetwork = network.to(device)
        self.iteration = 0
        self._momentum: dict[str, Tensor] = {}  # by parameter; empty before the first step
        self._averaged: AveragedModel | None = None
        if config.ema_decay:
            self._average = get_ema_multi_avg_fn(config.ema_decay)
            with self._naming_backbone():
                self._averaged = AveragedModel(self.network, multi_avg_fn=self._average, use_buffers=True)
        self._collect()
        self._dtype = resolve_precision(config.precision, device)

    @property
    def precision(self) -> str:
        """The precision of the training iteration, "bf16" or "float32", either of which "auto" may stand for."""
        return "bf16" if self._dtype == torch.bfloat16 else "float32"

    @property
    def eval_network(self) -> OrderingNetwork:
        """The network that is validated: the averaged weights if there are any, else the live ones."""
        return self.network if self._averaged is None else self._averaged.module  # type: ignore[return-value]

    def step(self, batches: Mapping[str, Batch]) -> dict[str, float]:
        """Take one SGD step on a mini-batch of each task; every task's gradient reaches the whole trunk.

        Args:
            batches: By task.

        Returns:
            By task, the cross-entropy of the whole mini-batch before the step. If one is not finite, the step was not
            taken.
        """
        losses = self._losses(batches)
        # one transfer of all; a loss that is not finite on one rank is not finite on any
        read_means = _begin_to_read(self._ranks.mean(torch.stack([loss.detach() for loss in losses.values()])))
        for parameter in self._parameters.values():
            parameter.grad = None
        sum(losses.values(), start=torch.zeros((), device=self.device)).backward()
        values = dict(zip(losses, read_means(), strict=True))  # a GPU is busy with the backward pass meanwhile
        if not all(math.isfinite(value) for value in values.values()):
            return values
        self._average_gradients()
        self._descend()
        self._update_averages()
        self.iteration += 1
        return values

    def copy(self) -> Trainer:
        """Copy the trainer: both continue identically, given the same mini-batches, and neither affects the other.

        Raises:
            ConfigurationError: If the backbone cannot be copied.
        """
        twin = copy.copy(self)
        with self._naming_backbone():
            twin.network, twin._averaged = copy.deepcopy((self.network, self._averaged))
        twin._momentum = {name: momentum.clone() for name, momentum in self._momentum.items()}
        twin._collect()
        return twin

    def start_from(self, trunk: Mapping[str, Tensor]) -> None:
        """Load another network's trunk, batch statistics included.

        Args:
            trunk: What `permenv.saved_run.trunk_weights` returned.

        Raises:
            RuntimeError: If the trunk has another architecture.
        """
        for network in (self.network, self.eval_network):
            network.trunk.load_state_dict(trunk)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes: a tree of tensors and numbers, which are copied."""
        return {
            "iteration": self.iteration,
            "network": _copies(self.network.state_dict()),
            "momentum": _copies(self._momentum),
            "averaged": None if self._averaged is None else _copies(self._averaged.state_dict()),
        }

    def state_schema(self) -> Schema:
        """What `state_dict` of such a trainer returns."""
        network = {name: _like(value) for name, value in self.network.state_dict().items()}
        # a module of the user's may hold parameters that no loss depends on: they have no momentum
        known = [name for name in self._parameters if self._always_trained(name)]
        momentum = {name: _like(value) for name, value in self._parameters.items()}
        averaged: Schema = OneOf((None,))
        if self._averaged is not None:
            averaged = Fields({name: _like(value) for name, value in self._averaged.state_dict().items()})
        parts = Fields(
            {
                "iteration": COUNT,
                "network": Explained(Fields(network), "the checkpoint has another network under the same names"),
                "momentum": Either(Fields({}), Fields({name: momentum.pop(name) for name in known}, momentum)),
                "averaged": averaged,
            }
        )
        return Where(
            parts,
            {
                "have a momentum after its first iteration and none before": lambda state: (
                    bool(state["momentum"]) == bool(state["iteration"])
                ),
                "have averaged the weights once an iteration": lambda state: (
                    state["averaged"] is None or state["averaged"]["n_averaged"].item() == state["iteration"]
                ),
            },
        )

    def trunk_schema(self) -> Schema:
        """What `permenv.saved_run.trunk_weights` returns of a run with such a trainer."""
        trunk = {name: _like(value) for name, value in self.network.trunk.state_dict().items()}
        return Explained(Fields(trunk), "the checkpoint has another trunk under the same name")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where the given state was taken; its tensors are copied. It fits `state_schema`."""
        self.iteration = state["iteration"]
        self.network.load_state_dict(state["network"])
        self._momentum = {
            name: torch.empty_like(parameter, requires_grad=False).copy_(state["momentum"][name])
            for name, parameter in self._parameters.items()
            if name in state["momentum"]
        }
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"])

    def _collect(self) -> None:
        """List the tensors of a step once: stepping through a small network's modules takes as long as its layers."""
        for network in (self.network, self.eval_network):
            for module in network.modules():
                if isinstance(module, nn.RNNBase):
                    module.flatten_parameters()  # a copy's weights are apart, which cuDNN does not take as they are
        self._parameters = dict(self.network.named_parameters())
        if self._averaged is not None:
            self._averages = _by_dtype(self._averaged.module, self.network)

    @contextlib.contextmanager
    def _naming_backbone(self) -> Iterator[None]:
        """Say what to do about a backbone that cannot be copied."""
        try:
            yield
        except (TypeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "deepcopy" not in str(error):  # out of memory, for example
                raise
            raise ConfigurationError(
                f"backbone={self.config.as_dict()['backbone']!r}: copy.deepcopy cannot copy the network ({error}), as "
                f"forks and averaged weights (ema_decay) need it; keep locks, open files and computed tensors out of "
                f"its modules' attributes, or give the module that has one a method __deepcopy__"
            ) from error

    def _always_trained(self, parameter: str) -> bool:
        """Whether the gradient of every loss reaches a parameter, as in the modules of this package."""
        part, task = parameter.split(".")[:2]
        if part == "trunk":
            return isinstance(self.config.backbone, str) and self.config.backbone in BACKBONES
        return type(self.network.heads[task]) in (PairwiseHead, SpatialHead, TemporalHead)

    @torch.no_grad()
    def _average_gradients(self) -> None:
        """Replace the gradients of this rank's shard by those of the whole mini-batch, in one message."""
        if self._ranks.size == 1:
            return
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        means = self._ranks.mean_(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))

    @torch.no_grad()
    def _descend(self) -> None:
        """Take a step of SGD with momentum and weight decay.

        torch's function is called directly: the class `torch.optim.SGD` imports torch's compiler, which takes seconds.
        """
        parameters = {name: p for name, p in self._parameters.items() if p.grad is not None}
        for name, parameter in parameters.items():
            if name not in self._momentum:
                self._momentum[name] = torch.zeros_like(parameter)
        sgd(
            list(parameters.values()),
            [p.grad for p in parameters.values()],  # type: ignore[misc]  # none is None
            [self._momentum[name] for name in parameters],
            fused=True,
            lr=self._learning_rate(),
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    @torch.no_grad()
    def _update_averages(self) -> None:
        """Do what `AveragedModel.update_parameters` does, without stepping through the modules again.

        Integer buffers, such as batch normalisation's counters, are copied: torch would average and truncate them.
        """
        if self._averaged is None:
            return
        if self._averaged.n_averaged == 0:  # the first time it copies the weights
            self._averaged.update_parameters(self.network)
            return
        for averages, values in self._averages:
            if averages[0].is_floating_point() or averages[0].is_complex():
                self._average(averages, values, self._averaged.n_averaged)
            else:
                torch._foreach_copy_(averages, values)
        self._averaged.n_averaged += 1

    def _losses(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        half = self._dtype == torch.bfloat16
        counts = [len(batch.labels) for batch in batches.values()]
        labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches.values()]))
        labels = labels.to(self.device, non_blocking=True)
        with (
            torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if half else contextlib.nullcontext()
        ):
            logits = self.network.together({task: batch.pieces for task, batch in batches.items()})
        return {
            task: nn.functional.cross_entropy(at_least_float32(logits[task]), each)
            for task, each in zip(batches, labels.split(counts), strict=True)
        }

    def _learning_rate(self) -> float:
        drop = self.config.learning_rate_drop
        return self.config.learning_rate * (0.1 if drop is not None and self.iteration >= drop else 1)


def _begin_to_read(values: Tensor) -> Callable[[], list[float]]:
    """Begin to copy numbers from a device; the function that is returned waits for them, and for no later work."""
    if not values.is_cuda:
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return read


def _by_dtype(averaged: nn.Module, network: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pair the averages of parameters and buffers with what they average, in lists of one type each."""
    tensors = [[*module.parameters(), *module.buffers()] for module in (averaged, network)]
    lists: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for average, value in zip(*tensors, strict=True):
        averages, values = lists.setdefault(average.dtype, ([], []))
        averages.append(average.detach())
        values.append(value.detach())
    return list(lists.values())


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy each; names that share a tensor have copies of their own."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _like(value: Any) -> Schema:
    return Array.like(value) if isinstance(value, Tensor) else Anything()  # modules may keep other state
