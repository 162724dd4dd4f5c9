"""Order prediction networks, which the paper compares with: 4 frames, 12 orders, features of pairs of frames.

Lee, Huang, Singh, Yang, "Unsupervised Representation Learning by Sorting Sequences", ICCV 2017. Importing this module
makes the task "order-prediction" known: all 4! / 2 orders of 4 frames, of which an order and its reverse count as one,
recognised by `permenv.heads.PairwiseHead`. Everything else is as in the temporal task, so that the two have the same
data, trunk, augmentation and iterations. The original chooses frames by the motion between them and crops around it;
here they are drawn at random, as in the paper's temporal task.
"""

from __future__ import annotations

from types import MappingProxyType

from permenv import register_task
from permenv.heads import PairwiseHead
from permenv.tasks import TemporalTask

NAME = "order-prediction"
ORDERS = {"num_frames": 4, "merge_reversed": True, "num_permutations": 12}


class OrderPrediction(TemporalTask):
    """Order 4 frames of a clip, forwards or backwards; see `permenv.tasks.TemporalTask`."""

    name = "order_prediction"
    preset_changes = MappingProxyType(
        {preset: {**TemporalTask.preset_changes.get(preset, {}), **ORDERS} for preset in ("nano", "tiny", "paper")}
    )

    def head(self, features: int) -> PairwiseHead:  # type: ignore[override]  # another head than the temporal task's
        """Make a head for frames with this number of pool5 features, of the original's widths in the paper preset."""
        config = self.config
        widths = {"fc6": config.fc6, "fc7": config.temporal_fc6}  # 1024 and 512
        return PairwiseHead(
            features, self.num_pieces, len(self.permutations), **widths, relative=config.relative_frames
        )


register_task(NAME, OrderPrediction)
