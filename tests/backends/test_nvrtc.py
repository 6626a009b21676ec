"""NVRTC compiles every kernel variant to machine code, with no device present."""

import itertools
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from sj_burst.backends.cuda import launch, operators
from sj_burst.backends.cuda.operators import SURROGATES

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed", exc_type=ImportError)

STORAGES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
FLAGS = (0, 1)


def compile_to_cubin(kernel: str, macros: dict[str, int], architecture: str, *extra: str) -> bytes:
    from cuda.bindings import nvrtc

    def check(result):
        status, *values = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = b" " * size
            nvrtc.nvrtcGetProgramLog(program, log)
            pytest.fail(f"{kernel} {macros} sm_{architecture}: {log.decode()}")
        return values[0] if values else None

    source = launch.kernel_source(kernel).encode()
    _, program = nvrtc.nvrtcCreateProgram(source, kernel.encode(), 0, [], [])
    options = [o.encode() for o in (*launch.compile_options(macros, architecture), *extra)]
    check(nvrtc.nvrtcCompileProgram(program, len(options), options))
    size = check(nvrtc.nvrtcGetCUBINSize(program))
    cubin = b" " * size
    check(nvrtc.nvrtcGetCUBIN(program, cubin))
    nvrtc.nvrtcDestroyProgram(program)
    return cubin


def variants(kernel: str, storage: str):
    shared = {"STORAGE": STORAGES[storage]}
    if kernel == "burst_forward":
        widths = (1, 16 // BYTES[storage])
        for width, shift, signed, count, save in itertools.product(widths, *[FLAGS] * 4):
            if not (count and save):  # training does not count
                flags = {"SHIFT": shift, "SIGNED": signed, "COUNT": count, "SAVE": save, "LEAKY": 0}
                yield shared | {"WIDTH": width} | flags
                if signed and not save:  # leaky neurons train on the torch backend
                    yield shared | {"WIDTH": width} | flags | {"LEAKY": 1}
    elif kernel == "burst_backward":
        for signed, surrogate in itertools.product(FLAGS, range(len(SURROGATES))):
            yield shared | {"SIGNED": signed, "SURROGATE": surrogate}
    else:
        for height, width in WINDOWS:
            vector = operators.pool_width(height * width, 8 if storage == "float64" else 4)
            for neighbours in {1, vector}:
                yield shared | {"WIDTH": neighbours, "KERNEL_H": height, "KERNEL_W": width}


WINDOWS = ((1, 3), (2, 2), (3, 3), (5, 5))
KERNELS = ("burst_forward", "burst_backward", "li_pool")
ARCHITECTURES = ("80", "90")


def in_turn(kernel: str, storage: str):
    """The variants for both architectures; the many of the neurons each for one.

    Those of the two halves, whose code is the same but for conversions, share the variants.
    """
    if kernel != "burst_forward":
        yield from itertools.product(variants(kernel, storage), ARCHITECTURES)
        return
    turns = itertools.cycle(ARCHITECTURES if STORAGES[storage] % 2 else reversed(ARCHITECTURES))
    for number, macros in enumerate(variants(kernel, storage)):
        architecture = next(turns)
        if BYTES[storage] != 2 or number // 2 % 2 == STORAGES[storage] % 2:
            yield macros, architecture


def tool(name: str) -> Path:
    triton = pytest.importorskip("triton", reason="triton brings the tools", exc_type=ImportError)
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        pytest.skip(f"this triton has no {name}")
    return path


def inspect(name: str, cubin: bytes, folder: Path, *options: str) -> str:
    """What a tool says of machine code."""
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [tool(name), *options, folder / "kernel.cubin"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_variant_compiles_and_keeps_its_state_in_registers(kernel, storage, tmp_path):
    for macros, architecture in in_turn(kernel, storage):
        cubin = compile_to_cubin(kernel, macros, architecture)
        usage = inspect("cuobjdump", cubin, tmp_path, "-res-usage")
        found = {key: int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
        assert found["STACK"] == found["LOCAL"] == 0, (macros, architecture, found)
        most = 255
        if kernel == "li_pool" and macros["KERNEL_H"] * macros["KERNEL_W"] <= 9:
            most = 64  # as many threads as a multiprocessor of these takes at half its warps
        elif kernel != "li_pool":
            most = 128
        assert found["REG"] <= most, (macros, architecture, found)


WIDEST = [  # kernel, macros; bytes of a vector of inputs, and of outputs
    *[("burst_forward", {"STORAGE": s, "WIDTH": 16 // b}, 16, 16) for s, b in enumerate((4, 2, 2, 8))],
    ("li_pool", {"STORAGE": 0, "WIDTH": 4, "KERNEL_H": 2, "KERNEL_W": 2}, 16, 16),
    ("li_pool", {"STORAGE": 0, "WIDTH": 2, "KERNEL_H": 3, "KERNEL_W": 3}, 8, 8),
    ("li_pool", {"STORAGE": 1, "WIDTH": 2, "KERNEL_H": 3, "KERNEL_W": 3}, 4, 4),
    ("li_pool", {"STORAGE": 3, "WIDTH": 2, "KERNEL_H": 2, "KERNEL_W": 2}, 16, 16),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "macros", "read", "written"), WIDEST, ids=str)
def test_vectors_are_read_and_written_as_such(kernel, macros, read, written, architecture, tmp_path):
    flags = {"SHIFT": 0, "SIGNED": 1, "COUNT": 0, "SAVE": 0, "LEAKY": 0} if "burst" in kernel else {}
    code = inspect("nvdisasm", compile_to_cubin(kernel, macros | flags, architecture), tmp_path)
    loads, stores = (
        Counter(
            int(bits) // 8 if bits else 4
            for bits in re.findall(rf"\b{name}\.E(?:\.(64|128))?(?:\.CONSTANT)?\s", code)
        )
        for name in ("LDG", "STG")
    )
    assert not re.search(r"\b(LDL|STL)\b", code)
    taps = macros.get("KERNEL_H", 1) * macros.get("KERNEL_W", 1)
    assert loads[read] >= taps, loads  # all inputs of a window at a time
    assert stores[written] >= 1, stores


def test_cupy_compiles_with_these_options(monkeypatch):
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    loaded = []

    class Module:
        load = staticmethod(loaded.append)
        get_function = staticmethod(lambda name: name)

    class Device:
        compute_capability = "90"

    monkeypatch.setattr(cupy.cuda.function, "Module", Module)
    monkeypatch.setattr(cupy.cuda, "Device", lambda index: Device)
    macros = next(variants("burst_forward", "bfloat16"))
    launch._compiled.cache_clear()
    assert launch._compiled("burst_forward", tuple(macros.items()), 0) == "burst_forward"
    assert loaded[0][:4] == b"\x7fELF"
    with pytest.raises(RuntimeError, match=r"does not compile.*\n(.|\n)*error"):
        launch._compiled("burst_forward", tuple((macros | {"WIDTH": -1}).items()), 0)
    launch._compiled.cache_clear()
