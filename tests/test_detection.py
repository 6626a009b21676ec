"""The tutorials' detector: its score against a slow one, its boxes against their scenes."""

import pytest
import torch
from detection import (
    THRESHOLDS,
    Objects,
    assign,
    average_precision,
    centres,
    decode,
    detection_loss,
    mean_average_precision,
    scenes_with_boxes,
)

STRIDES = [8, 16]


def overlap(a, b):
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / (sum(areas) - both)


def slow_average_precision(found, truth, label, least):
    """As COCO defines it, one box after the other, one recall after the other."""
    candidates = sorted(
        (
            (score, scene, box)
            for scene, got in enumerate(found)
            for box, k, score in zip(*map(torch.Tensor.tolist, got), strict=True)
            if k == label
        ),
        key=lambda candidate: -candidate[0],
    )
    wanted = {
        (scene, i): box
        for scene, objects in enumerate(truth)
        for i, (box, k) in enumerate(zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True))
        if k == label
    }
    free, points, right = dict(wanted), [], 0
    for rank, (_, scene, box) in enumerate(candidates, 1):
        near = {key: overlap(box, other) for key, other in free.items() if key[0] == scene}
        if near and max(near.values()) >= least:
            right += 1
            del free[max(near, key=near.get)]
        points.append((right / len(wanted), right / rank))
    levels = [
        max((precision for recall, precision in points if recall >= r / 100), default=0.0)
        for r in range(101)
    ]
    return sum(levels) / 101


def some(scenes, count, classes=3, spread=6.0):
    """True objects, and as many that lie somewhere near them, with others in between."""
    truth, found = [], []
    for _ in range(scenes):
        corners = 60 * torch.rand(count, 2)
        boxes = torch.cat([corners, corners + 10 + 20 * torch.rand(count, 2)], 1)
        labels = torch.randint(classes, (count,))
        truth.append(Objects(boxes, labels, torch.ones(count)))
        twice = torch.cat([boxes, boxes]) + spread * torch.randn(2 * count, 4)
        twice[:, 2:] = torch.maximum(twice[:, 2:], twice[:, :2] + 1)
        guess = torch.where(torch.rand(2 * count) < 0.8, labels.repeat(2), 0)
        found.append(Objects(twice, guess, torch.rand(2 * count)))
    return found, truth


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_average_precision_is_that_of_a_slow_count(spread):
    found, truth = some(12, 4, spread=spread)
    table = []
    for least in THRESHOLDS:
        table.append([slow_average_precision(found, truth, label, least) for label in range(3)])
        got = [average_precision(found, truth, label, least) for label in range(3)]
        assert got == pytest.approx(table[-1], abs=1e-9)
    table = 100 * torch.tensor(table)
    wanted = table[0].mean().item(), table.mean().item()
    assert mean_average_precision(found, truth, 3) == pytest.approx(wanted, abs=1e-4)
    assert 5 < wanted[1] < wanted[0] < 95


def test_the_truth_scores_full_marks_and_nothing_none():
    _, truth = some(5, 3)
    assert mean_average_precision(truth, truth, 3) == (pytest.approx(100.0), pytest.approx(100.0))
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert mean_average_precision([nothing] * 5, truth, 3) == (0, 0)
    twice = [Objects(*(torch.cat([t, t]) for t in objects)) for objects in truth]
    assert average_precision(twice, truth, 0, 0.5) < 1  # an object is found once
    absent = average_precision(truth, truth, 3, 0.5)
    assert absent != absent  # NaN, which the mean leaves out
    assert mean_average_precision(truth, truth, 4)[0] == pytest.approx(100.0)


def scenes():
    data = torch.rand(20, 1, 28, 28) + 1, torch.arange(20) % 10
    return scenes_with_boxes(data, 8)


def ideal(truth, shapes=((12, 12), (6, 6))):
    """The outputs that say exactly where the objects are."""
    scores, distances = [], []
    for index, shape, stride in zip(assign(truth, shapes, STRIDES), shapes, STRIDES, strict=True):
        at = centres(*shape, stride)
        p, d = torch.full((len(truth), 10, *shape), 1e-4), torch.ones(len(truth), 4, *shape)
        for n, cell in (index >= 0).nonzero():
            box, y, x = truth[n].boxes[index[n, cell]], cell // shape[1], cell % shape[1]
            p[n, truth[n].labels[index[n, cell]], y, x] = 0.9
            d[n, :, y, x] = torch.cat([at[cell] - box[:2], box[2:] - at[cell]]) / stride
        scores.append(p)
        distances.append(d)
    return scores, distances


def test_boxes_come_back_from_the_outputs_that_were_to_say_them():
    images, truth = scenes()
    assert images.shape == (8, 1, 96, 96)
    scores, distances = ideal(truth)
    assert all((level > 0.5).any() for level in scores)  # objects of both scales
    found = decode(scores, distances, STRIDES)
    at_half, at_all = mean_average_precision(found, truth, 10)
    assert at_half > 90 and at_all == pytest.approx(at_half, abs=1)
    logits = [p.logit().requires_grad_() for p in scores]
    good = detection_loss(logits, distances, truth, STRIDES)
    bad = detection_loss(logits, [d + 0.5 for d in distances], truth, STRIDES)
    assert good < 0.05 < bad
    good.backward()
    assert all(z.grad.abs().sum() > 0 for z in logits)
