"""Transfer: what the learned features are worth, one module a protocol.

- `retrieval`: nearest-neighbour search with pool5 features (section 4.1, Table 1).

Functions from a network and labelled data to figures; they know neither environments nor agents.
"""

from permenv.transfer.retrieval import nearest_neighbour_accuracy, pool_features, retrieval, spread_frames

__all__ = ["nearest_neighbour_accuracy", "pool_features", "retrieval", "spread_frames"]
