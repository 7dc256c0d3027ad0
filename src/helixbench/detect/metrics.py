"""What there is to know about the metrics of detectors; they are computed in helixbench/metrics.py,
classification.py and segmentation.py.
"""

from __future__ import annotations

from helixbench.catalogue import Metric

METRICS = (
    Metric("image_auroc", "image AUROC"),
    Metric("pixel_auroc", "pixel AUROC"),
    Metric("pixel_ap", "pixel AP"),
    Metric("image_ap", "image AP", table=4),
    Metric("pro", "PRO", table=4),
    Metric("f1_max", "pixel F1-max", table=4),
    Metric("recall", "recall at the promised false alarms", table=4),
    Metric("false_alarms", "false alarms", higher_is_better=False, table=4),
    Metric("accuracy", "classification accuracy", table=2),
    Metric("miou", "segmentation mIoU", table=2),
    Metric("iou", "segmentation IoU of defects", table=2),
    Metric("pixel_accuracy", "segmentation pixel accuracy", table=2),
    Metric("class_accuracy", "segmentation class accuracy", table=2),
)
