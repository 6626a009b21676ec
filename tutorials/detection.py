"""What a detector needs beside its network: scenes with boxes, a loss, boxes of outputs, a score."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from loaders import MEAN, STD
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))  # of intersection over union, as in COCO


class Objects(NamedTuple):
    """Objects of one scene.

    Attributes:
        boxes: left, top, right, bottom in pixels ``[K, 4]``.
        labels: ``[K]``.
        scores: how sure a detector is of each ``[K]``; ones for the truth.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def scenes_with_boxes(
    data: tuple[Tensor, Tensor], count: int, seed: int = 0, size: int = 96, level: float = 0.1
) -> tuple[Tensor, list[Objects]]:
    """Two to five garments, 16 to 56 pixels high, on a dark canvas.

    Each garment comes to that of sixteen random places which covers the least of those before it.

    Args:
        data: images and labels of :func:`fashion_mnist`.
        count: N, scenes to make.
        seed: of the garments, sizes and places drawn.
        size: height and width of a scene.
        level: pixels of a garment brighter than this, of 1, belong to it.

    Returns:
        Scenes ``[N, 1, size, size]``, and the garments in each.
    """
    draw = np.random.default_rng(seed)
    black, least = (0 - MEAN) / STD, (level - MEAN) / STD
    canvas, truth = torch.full((count, 1, size, size), black), []
    for scene in canvas[:, 0]:
        covered = torch.zeros(size, size, dtype=torch.bool)
        boxes, labels = [], []
        for index in draw.integers(len(data[0]), size=draw.integers(2, 6)):
            side = round(16 * 3.5 ** draw.random())
            garment = F.interpolate(data[0][index : index + 1], (side, side), mode="bilinear")[0, 0]
            corners = draw.integers(0, size - side + 1, (16, 2))
            places = [tuple(slice(a, a + side) for a in corner) for corner in corners]
            place = min(places, key=lambda p: covered[p].count_nonzero().item())
            visible = garment > least
            scene[place][visible] = garment[visible]
            covered[place] = True
            rows, columns = visible.any(1).nonzero(), visible.any(0).nonzero()
            ends = torch.cat([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            boxes.append(ends + torch.tensor([place[1].start, place[0].start] * 2))
            labels.append(data[1][index])
        found = torch.stack(boxes).float()
        truth.append(Objects(found, torch.stack(labels), torch.ones(len(found))))
    return canvas, truth


def centres(height: int, width: int, stride: int) -> Tensor:
    """Where the cells of a map lie in the image: x and y in pixels ``[H·W, 2]``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride


def to_boxes(distances: Tensor, stride: int) -> Tensor:
    """Boxes ``[N, H·W, 4]`` of distances from cells to four sides, in strides ``[N, 4, H, W]``."""
    at = centres(*distances.shape[2:], stride).to(distances.device)
    left_top, right_bottom = (stride * distances.flatten(2).transpose(1, 2)).chunk(2, 2)
    return torch.cat([at - left_top, at + right_bottom], 2)


def assign(truth: list[Objects], shapes: list[tuple[int, int]], strides: list[int]) -> list[Tensor]:
    """Which object each cell of each level is to find ``[N, H·W]``, and −1 for none.

    An object belongs to the level whose stride is nearest to a quarter of its size, and there to the
    cells within one stride of its centre; of several objects, the smallest has a cell.
    """
    found = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        at, cells = centres(height, width, stride), []
        for scene in truth:
            sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
            quarter = sides.amax(1, keepdim=True) / 4
            nearest = (quarter.log2() - torch.tensor(strides).log2()).abs().argmin(1)
            middle = (scene.boxes[:, 2:] + scene.boxes[:, :2]) / 2
            near = (at[:, None] - middle).abs().amax(2) <= stride
            near &= nearest == strides.index(stride)
            smallest = torch.where(near, sides.prod(1), torch.inf).min(1)
            cells.append(torch.where(smallest.values < torch.inf, smallest.indices, -1))
        found.append(torch.stack(cells))
    return found


def detection_loss(
    logits: list[Tensor], distances: list[Tensor], truth: list[Objects], strides: list[int]
) -> Tensor:
    """Focal loss of the classes, and 1 − generalized IoU of the boxes of the cells with an object.

    Args:
        logits: of each level ``[N, classes, H, W]``.
        distances: of each level, to the sides in strides ``[N, 4, H, W]``.
        truth: the objects of each scene.
        strides: of each level, in pixels.
    """
    cells = assign(truth, [tuple(level.shape[2:]) for level in logits], strides)
    classes = boxes = torch.zeros(())
    count = max(1, sum(int((index >= 0).sum()) for index in cells))
    for z, d, index, stride in zip(logits, distances, cells, strides, strict=True):
        wanted = torch.zeros_like(z).flatten(2).transpose(1, 2).contiguous()
        scene, cell = (index >= 0).nonzero(as_tuple=True)
        chosen = [(truth[n], k) for n, k in zip(scene, index[scene, cell], strict=True)]
        if chosen:
            wanted[scene, cell, torch.stack([objects.labels[k] for objects, k in chosen])] = 1
            targets = torch.stack([objects.boxes[k] for objects, k in chosen])
            got = to_boxes(d, stride)[scene, cell]
            boxes = boxes + generalized_box_iou_loss(got, targets, reduction="sum")
        flat = z.flatten(2).transpose(1, 2)
        classes = classes + sigmoid_focal_loss(flat, wanted, reduction="sum")
    return (classes + boxes) / count


def decode(
    scores: list[Tensor],
    distances: list[Tensor],
    strides: list[int],
    least: float = 0.05,
    overlap: float = 0.5,
    most: int = 50,
) -> list[Objects]:
    """Boxes of the outputs of a detector, without those that overlap a surer one of their class.

    Args:
        scores: of each level, probabilities ``[N, classes, H, W]``.
        distances: of each level ``[N, 4, H, W]``.
        strides: of each level, in pixels.
        least: smallest score.
        overlap: largest intersection over union of two boxes of a class.
        most: so many boxes a scene.
    """
    boxes = torch.cat([to_boxes(d, s) for d, s in zip(distances, strides, strict=True)], 1)
    scores_of = torch.cat([level.flatten(2) for level in scores], 2).transpose(1, 2)
    found = []
    for box, score in zip(boxes, scores_of, strict=True):
        cell, label = (score >= least).nonzero(as_tuple=True)
        sure = score[cell, label]
        kept = batched_nms(box[cell], sure, label, overlap)[:most]
        found.append(Objects(box[cell[kept]], label[kept], sure[kept]))
    return found


def average_precision(found: list[Objects], truth: list[Objects], label: int, least: float) -> float:
    """Area under precision over recall of one class, at 101 recalls as in COCO; NaN without objects.

    The surest box goes first. It hits if an object of its scene that no surer box has taken overlaps it
    by ``least``, and takes the one that it overlaps most.
    """
    scores, hits, objects = [], [], 0
    for got, wanted in zip(found, truth, strict=True):
        mine = got.labels == label
        order = got.scores[mine].argsort(descending=True)
        overlaps = box_iou(got.boxes[mine][order], wanted.boxes[wanted.labels == label])
        objects += overlaps.shape[1]
        scores.append(got.scores[mine][order])
        for row in overlaps:
            best, at = row.max(0) if len(row) else (row.new_zeros(()), None)
            hits.append(bool(best >= least))
            if hits[-1]:
                overlaps[:, at] = -1  # taken
    if objects == 0:
        return float("nan")
    order = torch.cat(scores).argsort(descending=True, stable=True)
    right = torch.tensor(hits, dtype=torch.float64)[order].cumsum(0)
    precision = right / torch.arange(1, len(right) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)  # at this recall or a higher one
    first = torch.searchsorted(right / objects, torch.linspace(0, 1, 101, dtype=torch.float64))
    return torch.cat([best, best.new_zeros(1)])[first].mean().item()


def mean_average_precision(
    found: list[Objects], truth: list[Objects], classes: int
) -> tuple[float, float]:
    """Mean over the classes, in percent: at an overlap of 0.5, and over ``THRESHOLDS``."""
    table = torch.tensor(
        [[average_precision(found, truth, k, t) for k in range(classes)] for t in THRESHOLDS]
    )
    return 100 * table[0].nanmean().item(), 100 * table.nanmean().item()
