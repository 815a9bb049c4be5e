"""The kinds of task: head, loss per example, metrics; and their losses and scores as sums and
counts.
"""

from raymtl.tasks.binary import binary
from raymtl.tasks.choice import chosen_by
from raymtl.tasks.classification import classification
from raymtl.tasks.dense import over_places
from raymtl.tasks.depth import depth
from raymtl.tasks.detection import detection
from raymtl.tasks.groups import Group, SharedLoss, grouped, in_task_order, task_groups
from raymtl.tasks.kinds import KINDS, MAP_KINDS, KindName, kind_named
from raymtl.tasks.maps import MapKind
from raymtl.tasks.multilabel import multilabel
from raymtl.tasks.normals import normals
from raymtl.tasks.regression import regression
from raymtl.tasks.segmentation import segmentation
from raymtl.tasks.sums import (
    group_loss_sums,
    grouped_metric_sums,
    grouped_sums,
    label_counts,
    label_mask,
    loss_sums,
    metric_names,
    metric_parts,
    metric_sums,
    metric_values,
    num_sums,
)
from raymtl.tasks.thresholds import ThresholdMetric, at_thresholds, best_threshold, with_threshold

__all__ = [
    "KINDS",
    "MAP_KINDS",
    "Group",
    "KindName",
    "MapKind",
    "SharedLoss",
    "ThresholdMetric",
    "at_thresholds",
    "best_threshold",
    "binary",
    "chosen_by",
    "classification",
    "depth",
    "detection",
    "group_loss_sums",
    "grouped",
    "grouped_metric_sums",
    "grouped_sums",
    "in_task_order",
    "kind_named",
    "label_counts",
    "label_mask",
    "loss_sums",
    "metric_names",
    "metric_parts",
    "metric_sums",
    "metric_values",
    "multilabel",
    "normals",
    "num_sums",
    "over_places",
    "regression",
    "segmentation",
    "task_groups",
    "with_threshold",
]
