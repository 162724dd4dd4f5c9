"""SGD on permuted mini-batches: the network, its optimiser and its moving average. No reinforcement learning here."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from permenv.augment import (
    ColourJitter,
    centre_offsets,
    cut_tiles,
    jitter_parameters,
    normalise,
    random_offsets,
    unshuffled,
)
from permenv.config import Config, ConfigurationError
from permenv.networks import OrderingNetwork, build_network
from permenv.validation import Validation, validate


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "auto" into the GPU if there is one, else the CPU.

    Raises:
        ConfigurationError: If the device is not known, or is a GPU that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigurationError(f"unknown device {str(device)!r}; use 'auto', 'cpu' or 'cuda'")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device {device!r}: torch sees no GPU here; use device='auto' or 'cpu'")
    return chosen


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type of the training iteration's matrix products: for "auto" bf16 where the device has it in hardware."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if native else "float32"
    return {"bf16": torch.bfloat16, "float32": torch.float32}[precision]


class Trainer:
    """The network Φ in training on the spatial task.

    Attributes:
        network: The live weights.
        iteration: SGD iterations done.

    Args:
        config: All numbers.
        permutations: (|Ψ|, n) int, Ψ.
        device: Where the network lives.
        seed: Decides the initial weights.
    """

    def __init__(self, config: Config, permutations: np.ndarray, device: torch.device, seed: int):
        self.config = config
        self.permutations = permutations
        self.device = device
        self.network: OrderingNetwork = build_network(
            config.backbone,
            num_pieces=config.num_pieces,
            num_permutations=config.num_permutations,
            piece_size=config.piece_size,
            fc6=config.fc6,
            fc7=config.fc7,
            seed=seed,
        ).to(device)
        self.iteration = 0
        self._optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._averaged: AveragedModel | None = None
        if config.ema_decay:
            self._averaged = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
            )
        self._dtype = resolve_precision(config.precision, device)
        self._jitter = ColourJitter(config.jitter, config.grey_probability)

    @property
    def evaluated(self) -> OrderingNetwork:
        """The network that validation looks at: the averaged weights if there are any, else the live ones."""
        return self.network if self._averaged is None else self._averaged.module  # type: ignore[return-value]

    def step(self, images: Tensor, labels: np.ndarray, rng: np.random.Generator) -> float:
        """Train on one mini-batch: augment, shuffle, one SGD step.

        Args:
            images: (B, S, S, 3) uint8 on the device.
            labels: (B,) int, the permutation of each sample as an index into Ψ.
            rng: Source of the augmentation.

        Returns:
            The cross-entropy before the step. If it is not finite, the step was not taken.
        """
        loss = self._loss(self.training_pieces(images, labels, rng), labels)
        value = loss.item()
        if not np.isfinite(value):
            return value
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if self._averaged is not None:
            self._averaged.update_parameters(self.network)
        self.iteration += 1
        return value

    def training_pieces(self, images: Tensor, labels: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Shuffled, augmented pieces (B, n, 3, h, w) of images (B, S, S, 3) under the permutations `labels` (B,)."""
        config = self.config
        offsets = random_offsets(rng, len(images), config.num_pieces, config.cell_size - config.piece_size)
        colours = jitter_parameters(rng, len(images), config.num_pieces, self._jitter)
        tiles = cut_tiles(images, self.permutations[labels], offsets, config.grid, config.piece_size)
        return normalise(tiles, colours)

    def validation_pieces(self, images: Tensor) -> Tensor:
        """Centre crops (V, n, 3, h, w), in their true order and not augmented, of images (V, S, S, 3)."""
        config = self.config
        order = unshuffled(len(images), config.num_pieces)
        offsets = centre_offsets(len(images), config.num_pieces, config.cell_size - config.piece_size)
        return normalise(cut_tiles(images, order, offsets, config.grid, config.piece_size))

    def validate(self, pieces: Tensor) -> Validation:
        """Score all permutations of validation pieces (V, n, 3, h, w)."""
        return validate(self.evaluated, "spatial", pieces, self.permutations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training moves: a tree of tensors and numbers. The tensors are the live ones."""
        return {
            "iteration": self.iteration,
            "network": dict(self.network.state_dict()),
            "momentum": {
                name: self._optimizer.state[parameter]["momentum_buffer"]
                for name, parameter in self.network.named_parameters()
                if parameter in self._optimizer.state  # not before the first step
            },
            "averaged": None if self._averaged is None else dict(self._averaged.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where the given state was taken; its tensors are copied."""
        self.iteration = state["iteration"]
        self.network.load_state_dict(state["network"])
        self._optimizer.state.clear()
        for name, parameter in self.network.named_parameters():
            if name in state["momentum"]:
                buffer = torch.empty_like(parameter).copy_(state["momentum"][name])
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"])

    def _loss(self, pieces: Tensor, labels: np.ndarray) -> Tensor:
        half = self._dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext():
            logits = self.network("spatial", pieces)
        return nn.functional.cross_entropy(logits.float(), torch.from_numpy(labels).to(self.device))

    def _learning_rate(self) -> float:
        drop = self.config.learning_rate_drop
        return self.config.learning_rate * (0.1 if drop is not None and self.iteration >= drop else 1)
