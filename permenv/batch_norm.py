"""Batch normalisation whose statistics are those of the mini-batches of all ranks together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from permenv.config import ConfigurationError
from permenv.distributed import Ranks

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise(network: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Let a network's batch normalisation see the mini-batches of all ranks; the names of its state stay the same.

    Args:
        network: Changed in place.
        ranks: Of a single one nothing is changed.
        device: Where the network will live. On GPUs torch's own layer is used, which takes no tensors of a CPU.

    Raises:
        ConfigurationError: If a layer is of another class, such as one that timm derives, whose forward pass may do
            more.
    """
    if ranks.size == 1:
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) not in _PLAIN:
            raise ConfigurationError(
                f"the backbone's layer {name!r} is a {type(module).__name__}, which {ranks.size} ranks cannot share: "
                f"use a backbone with torch's own BatchNorm layers, or start one rank"
            )
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) in _PLAIN:
            module.__class__ = _BatchNormOverRanks  # keeps its parameters and buffers
            module.ranks = ranks  # type: ignore[assignment]  # a module may have any attribute


class _BatchNormOverRanks(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of mini-batches (B, channels, ...) that are equally large on all ranks."""

    ranks: Ranks

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Take any number of dimensions: one class stands for torch's three."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise with the statistics of all ranks in training, else with the running ones."""
        if not self.training:
            return super().forward(inputs)
        over = [0, *range(2, inputs.dim())]  # all but the channels
        numbers = inputs.to(torch.promote_types(inputs.dtype, torch.float32))  # bf16 is too coarse for a variance
        count = self.ranks.size * numbers.numel() // numbers.shape[1]
        mean = _Total.apply(numbers.sum(over, keepdim=True), self.ranks) / count
        centred = numbers - mean
        variance = _Total.apply(centred.square().sum(over, keepdim=True), self.ranks) / count
        if self.track_running_stats:
            self._update(mean.detach().flatten(), variance.detach().flatten() * (count / (count - 1)))
        normal = centred * (variance + self.eps).rsqrt()
        if self.affine:
            shape = mean.shape
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(inputs.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # without a momentum torch takes the mean of all mini-batches
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - share).add_(mean, alpha=share)
        self.running_var.mul_(1 - share).add_(variance, alpha=share)


class _Total(torch.autograd.Function):
    """The sum over all ranks. Each rank's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        """Sum up."""
        ctx.ranks = ranks
        return ranks.total(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum up the gradients."""
        return ctx.ranks.total(gradient), None
