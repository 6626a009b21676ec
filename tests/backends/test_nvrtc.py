"""NVRTC compiles every kernel variant to machine code, with no device present."""

import itertools

import pytest

from sj_burst.backends.cuda import launch
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
        for height, width in ((1, 3), (2, 2), (3, 3), (9, 9)):
            yield shared | {"KERNEL_H": height, "KERNEL_W": width}


KERNELS = ("burst_forward", "burst_backward", "li_pool")
ARCHITECTURES = ("80", "90")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_variant_compiles(kernel, storage):
    """Each for one architecture, in turn, and without the optimizer, which takes most of the time."""
    turns = itertools.cycle(ARCHITECTURES if STORAGES[storage] % 2 else reversed(ARCHITECTURES))
    for macros, architecture in zip(variants(kernel, storage), turns, strict=False):
        cubin = compile_to_cubin(kernel, macros, architecture, "--Ofast-compile=max")
        assert cubin[:4] == b"\x7fELF"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_as_it_will_run(kernel, architecture):
    macros = list(variants(kernel, "float16"))[-1]
    assert compile_to_cubin(kernel, macros, architecture)[:4] == b"\x7fELF"


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
