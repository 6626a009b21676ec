"""Data sets of the tutorials, each as a training and a test split of torch datasets."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

HERE = Path(__file__).resolve().parent
Splits = dict[str, "Dataset[tuple[Tensor, int]]"]
MEAN, STD = 0.286, 0.353  # of Fashion-MNIST's pixels


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array from an IDX file, plain or gzipped."""
    path = next((p for p in sorted(folder.glob(f"{name}*")) if p.is_file()), None)
    if path is None:
        raise SystemExit(f"{folder} has no file {name}-idx…; --data wants Fashion-MNIST's IDX files")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def fashion_mnist(folder: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """``train`` and ``test``: normalised images ``[N, 1, 28, 28]`` and labels.

    Without a folder, the embedded subset: the first 10,000 training and 2,000 test images.
    """
    if folder is None:
        arrays = dict(np.load(HERE / "data" / "fashion_mnist.npz"))
    else:
        root = Path(folder)
        arrays = {
            "train_images": read_idx(root, "train-images"),
            "train_labels": read_idx(root, "train-labels"),
            "test_images": read_idx(root, "t10k-images"),
            "test_labels": read_idx(root, "t10k-labels"),
        }
    return {
        split: (
            (torch.from_numpy(arrays[f"{split}_images"].copy()).unsqueeze(1) / 255 - MEAN) / STD,
            torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)),
        )
        for split in ("train", "test")
    }


def scenes(
    data: tuple[Tensor, Tensor], count: int, seed: int = 0, size: int = 64, level: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Two to four garments on a dark canvas, and the class of every pixel.

    Each garment comes to that of eight random places which covers the least of those before it.

    Args:
        data: images and labels of :func:`fashion_mnist`.
        count: N, scenes to make.
        seed: of the garments and places drawn.
        size: height and width of a scene.
        level: pixels of a garment brighter than this, of 1, cover what lies below them.

    Returns:
        Scenes ``[N, 1, size, size]`` and masks ``[N, size, size]``: 0 background, 1 + label else.
    """
    draw = np.random.default_rng(seed)
    black, least = (0 - MEAN) / STD, (level - MEAN) / STD
    canvas = torch.full((count, 1, size, size), black)
    masks = torch.zeros(count, size, size, dtype=torch.long)
    for scene, mask in zip(canvas[:, 0], masks, strict=True):
        for index in draw.integers(len(data[0]), size=draw.integers(2, 5)):
            garment, label = data[0][index, 0], data[1][index]
            corners = draw.integers(0, [size - n + 1 for n in garment.shape], (8, 2))
            places = [tuple(map(slice, c, c + garment.shape)) for c in corners]
            place = min(places, key=lambda p: mask[p].count_nonzero().item())
            visible = garment > least
            scene[place][visible] = garment[visible]
            mask[place][visible] = 1 + label
    return canvas, masks


def _idx(root: str | None) -> Splits:
    return {split: TensorDataset(*data) for split, data in fashion_mnist(root).items()}


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation


def _cifar10_jpeg(path: str | None) -> Splits:
    """One file with the arrays train_jpeg (bytes), train_end (offsets), train_label; test_ likewise."""
    from PIL import Image

    file = np.load(_needed(path, "a file of JPEG images"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    splits: Splits = {}
    for split in ("train", "test"):
        data, ends, labels = (file[f"{split}_{name}"] for name in ("jpeg", "end", "label"))
        starts = np.concatenate([[0], ends[:-1]])
        pixels = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(data[start:end].tobytes())))
                for start, end in zip(starts, ends, strict=True)
            ]
        )
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
        splits[split] = TensorDataset(x, torch.from_numpy(labels.astype(np.int64)))
    return splits


def _cifar(name: str) -> Callable[[str | None], Splits]:
    def load(root: str | None) -> Splits:
        from torchvision import datasets, transforms

        to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*IMAGENET)])
        make = getattr(datasets, name)
        root = _needed(root, "a folder to download to", made=True)
        return {
            split: make(root, train=split == "train", transform=to_input, download=True)
            for split in ("train", "test")
        }

    return load


def _folder(root: str | None) -> Splits:
    """A folder with ``train/<class>/`` and ``val/<class>/``, as ImageNet is usually kept."""
    from torchvision import datasets, transforms

    to_input = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET),
        ]
    )
    parts = {"train": "train", "test": "val"}
    return {
        split: datasets.ImageFolder(Path(_needed(root, "a folder")) / part, to_input)
        for split, part in parts.items()
    }


PHOTO = 256  # pixels of a side


def photographs(path: Path) -> tuple[Tensor, Tensor | None]:
    """Pixels ``[N, 3, 256, 256]`` (uint8, RGB) of photographs, and their labels if they have any.

    Args:
        path: a folder of image files, or of a folder for each class, in alphabetical order; or an .npz
            file with the arrays jpeg (bytes of all files), end (offsets) and label.
    """
    from PIL import Image

    def square(file: Any) -> Tensor:
        image = Image.open(file).convert("RGB")
        scale = PHOTO / min(image.size)
        size = [max(PHOTO, round(scale * side)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR) if scale != 1 else image
        left, top = ((side - PHOTO) // 2 for side in image.size)
        pixels = np.array(image.crop((left, top, left + PHOTO, top + PHOTO)))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    if path.suffix == ".npz":
        arrays = np.load(_needed(str(path), "a file of photographs"))
        data, ends = arrays["jpeg"], arrays["end"]
        files: list[Any] = [
            io.BytesIO(data[start:end].tobytes())
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
        labels = torch.from_numpy(arrays["label"].astype(np.int64))
        return torch.stack([square(file) for file in files]), labels
    if not path.is_dir():
        raise SystemExit(f"--data: there is no folder {path}")
    kinds = Image.registered_extensions()
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in kinds)
    if not files:
        raise SystemExit(f"--data: {path} has no image files")
    classes = sorted(d.name for d in path.iterdir() if d.is_dir())
    labels = (
        torch.tensor([classes.index(f.relative_to(path).parts[0]) for f in files]) if classes else None
    )
    return torch.stack([square(file) for file in files]), labels


def _needed(root: str | None, what: str, made: bool = False) -> str:
    if root is None:
        raise SystemExit(f"this data set wants --data: {what}")
    if not made and not Path(root).exists():
        raise SystemExit(f"--data: there is no {root}; it wants {what}")
    return root


DATASETS: dict[str, Callable[[str | None], Splits]] = {
    "fashion-mnist": _idx,
    "cifar10-jpeg": _cifar10_jpeg,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "folder": _folder,
}
