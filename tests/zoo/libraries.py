"""The networks of timm, torchvision and segmentation_models_pytorch whose activations are ReLUs."""

import csv
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .entry import Entry
from .oracle import inquire

__all__ = ["LIBRARIES", "TIMM", "smp_entries", "survey_timm", "timm_entries", "torchvision_entries"]

LARGE = 590e6  # multiplications
TIMM = Path(__file__).parent / "timm.csv"
_SIZES = (64, 96, 128, 224, 256, 299, 384, 512)  # tried in this order


def timm_entries() -> Iterator[Entry]:
    """All of ``timm.csv``, small ones first; :func:`survey_timm` wrote it."""
    with TIMM.open(newline="") as file:
        for row in csv.DictReader(file):
            size, make = int(row["size"]), functools.partial(_timm, row["name"])
            large = int(row["macs"]) > LARGE
            yield Entry("timm", row["name"], make, (3, size, size), large=large)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def survey_timm() -> None:
    """Look at every architecture of timm, without its weights; list those of ReLUs.

    An architecture is one of ReLUs if most of its activations are (ReLU6, LeakyReLU, PReLU, maxima and
    the like among them). Its size is the smallest at which it runs; small ones come first.
    """
    import timm
    from timm.models import model_entrypoint

    rows: list[dict[str, Any]] = []
    for name in timm.list_models():
        file = model_entrypoint(name).__module__.rpartition(".")[2]
        row = {"name": name, "file": file, **_look(functools.partial(_timm, name))}
        if row.get("size") and row["relus"] > row["others"]:
            rows.append(row)
        print(name, flush=True)
    rows.sort(key=lambda row: row["macs"])
    with TIMM.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _look(make: Any) -> dict[str, Any]:
    """Size, activations, parameters and operations of a network that is not computed; or nothing."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"):
            net = make().eval()
    except Exception:
        return {}
    for size in _SIZES:
        x = torch.zeros(1, 3, size, size, device="meta")
        try:
            finding = inquire(net, x)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                net(x)
        except Exception:
            continue
        return {
            "size": size,
            "relus": finding.activations,
            "others": finding.other,
            "params": sum(p.numel() for p in net.parameters()),
            "macs": counter.get_total_flops() // 2,
        }
    return {}


def torchvision_entries() -> Iterator[Entry]:
    """All of classification, segmentation and video, the bodies of the detectors, and RAFT."""
    from torchvision import models

    for module, shape in (
        (models, (3, 64, 64)),
        (models.quantization, (3, 64, 64)),
        (models.segmentation, (3, 64, 64)),
        (models.video, (3, 8, 64, 64)),
        (models.detection, (3, 64, 64)),
    ):
        for name in models.list_models(module=module):
            if module is models.quantization and not name.startswith("quantized"):
                continue
            make = functools.partial(_torchvision, name)
            if module is models.detection:
                make = functools.partial(_detector_body, name)
            yield Entry("torchvision", name, make, _INPUTS.get(name, shape))


# Networks that do not run on 64×64 pixels.
_INPUTS = {
    "inception_v3": (3, 80, 80),
    "quantized_inception_v3": (3, 80, 80),
    **dict.fromkeys(("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"), (3, 224, 224)),
    **dict.fromkeys(("maxvit_t",), (3, 224, 224)),
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), (3, 16, 224, 224)),
}


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    plain = {"init_weights": False} if re.search("googlenet|inception", name) else {}
    backbone = {"weights_backbone": None} if re.search("fcn|deeplab|lraspp", name) else {}
    name = name.removeprefix("quantized_")
    return get_model(name, weights=None, **plain, **backbone)


def _detector_body(name: str) -> nn.Module:
    """The part of a detector that computes its feature maps; what follows picks boxes."""
    from torchvision.models import get_model

    return get_model(name, weights=None, weights_backbone=None).backbone


_ENCODERS = ("resnet18", "mobilenet_v2", "vgg11_bn", "densenet121", "dpn68", "resnext50_32x4d")


def smp_entries() -> Iterator[Entry]:
    """Every decoder with small encoders, as far as the two go together."""
    import segmentation_models_pytorch as smp

    for decoder in sorted(smp.MODEL_ARCHITECTURES_MAPPING):
        for encoder in _ENCODERS:
            if decoder == "dpt":
                encoder = f"tu-{encoder}"  # transformers of timm only; others do not run
            yield Entry(
                "smp", f"{decoder}-{encoder}", functools.partial(_smp, decoder, encoder), (3, 64, 64)
            )


def _smp(decoder: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.create_model(decoder, encoder_name=encoder, encoder_weights=None, classes=3)


LIBRARIES = {"timm": timm_entries, "torchvision": torchvision_entries, "smp": smp_entries}
