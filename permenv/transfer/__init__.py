"""Transfer: what the learned features are worth, one module a protocol.

- `trunks`: the trunk that a protocol starts from.
- `retrieval`: nearest-neighbour search with pool5 features (section 4.1, Table 1).
- `probes`: linear and non-linear classifiers on frozen features (section 4.2, Table 2).
- `classification`, `detection`, `segmentation`: fine-tuning on PASCAL VOC (section 4.2, Table 4). They share `plain`,
  the trunk without batch normalisation and its new layers, `finetuning`, the SGD, and `voc_metrics`, the figures;
  `voc_sets`, what they and retrieval take, from the devkit; detection has `roi_pooling`, `proposals` and `boxes` of
  its own.
- `action_recognition`: fine-tuning on single frames of UCF-101 and HMDB-51 (section 4.2, Table 3), with the trunk's
  batch normalisation and the new layers of `plain`; `action_splits`, the clips and their official splits.
- `supervised`: a trunk that is trained on labels, with which the others are compared.
- `batches`: how many images are computed at once; `crops`: crops of images, cut out and resized.
- `pictures`: nearest neighbours (figure 3), top activations and class saliency (appendix I).
- `export`: a trunk as a file for others, with a model card.

Functions from a network and labelled data to figures; they know neither environments nor agents. They compute in the
caller's torch state, where a run has its own: on a GPU torch convolves in TF32 unless `torch.backends.cudnn.allow_tf32`
is off.
"""

from permenv.transfer.retrieval import nearest, nearest_neighbour_accuracy, pool_features, retrieval, spread_frames

__all__ = ["nearest", "nearest_neighbour_accuracy", "pool_features", "retrieval", "spread_frames"]
