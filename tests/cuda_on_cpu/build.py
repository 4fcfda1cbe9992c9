"""Compiles CUDA sources against shim.h, and lends their kernels memory that knows its bounds."""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = tuple(sorted((CSRC / "cuda").glob("persistent_*.cu")))
AROUND_THEM = (CSRC / "cuda" / "launch.cu", CSRC / "cuda" / "bindings.cpp")
MODULE = "_cuda_on_cpu"
HEADERS = ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "crt/host_defines.h")
# A library must not share its inline variables with another: each has a machine of its own.
FLAGS = ("-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fno-gnu-unique", "-shared", "-fPIC")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def _toolkits() -> list[Path]:
    """Folders that may hold CUDA headers: the toolkit's, pip's, and those that triton brings."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    homes += [Path("/usr/local/cuda")]
    sites = [Path(folder) for folder in sys.path]
    homes += [site / "nvidia" / "cu13" for site in sites]
    return [home / "include" for home in homes] + [site / "triton/backends/nvidia/include" for site in sites]


@functools.cache
def headers() -> Path | None:
    """The first folder with CUDA headers, None where there is none."""
    return next(
        (folder for folder in _toolkits() if all((folder / name).is_file() for name in HEADERS)), None
    )


def missing() -> str | None:
    """Why nothing can be compiled here, None where it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the shim wants Linux on x86-64, not {platform.system()} on {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not on the PATH"
    if headers() is None:
        return "no CUDA headers: set CUDA_HOME, or install nvidia-cuda-runtime and nvidia-cuda-crt, or triton"
    return None


@functools.cache
def build(source: Path, *flags: str) -> ctypes.CDLL:
    """The source's kernels as a library, compiled once in this process.

    Raises:
        RuntimeError: with the compiler's words, where it refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{source.stem}.so"  # loaded, it needs its file no more
        command = ["g++", *FLAGS, *WARNINGS, *flags, "-DFUSEDLSTM_HOST_SHIM", f"-I{HERE}", f"-I{CSRC}"]
        command += ["-isystem", str(headers()), "-x", "c++", str(source), "-o", str(target)]
        _run(*command)
        return _library(target)


def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.shim_error.restype = ctypes.c_char_p
    library.shim_seed.restype = None
    library.shim_allocate.restype = ctypes.c_void_p
    library.shim_allocate.argtypes = [ctypes.c_size_t]
    library.shim_free.restype = None
    library.shim_free.argtypes = [ctypes.c_void_p]
    return library


@functools.cache
def build_module(*flags: str, kernels: tuple[Path, ...] = KERNELS) -> ModuleType:
    """fusedlstm._cuda from csrc/cuda, with the shim in place of the hardware.

    Args:
        flags: for the compiler, for the kernels only.
        kernels: sources in place of the persistent_*.cu, which say what is in the tables.

    Returns:
        The module; its attribute `shim` is the same library for ctypes, as `build` returns it.

    Raises:
        RuntimeError: with the compiler's words, where it refuses.
    """
    with ThreadPoolExecutor() as pool:
        objects = [
            *pool.map(_object, AROUND_THEM),
            *pool.map(functools.partial(_object, flags=flags), kernels),
        ]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{MODULE}.so"
        _run("g++", *FLAGS, *map(str, objects), "-o", str(target))
        # pybind11 takes two modules of one name for the same one; the name's last part is compiled in.
        spec = importlib.util.spec_from_file_location(f"{Path(folder).name}.{MODULE}", target)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.shim = _library(target)  # type: ignore[attr-defined]
    return module


@functools.cache
def _object(source: Path, flags: tuple[str, ...] = ()) -> Path:
    handle, target = tempfile.mkstemp(suffix=".o", dir=_folder())
    os.close(handle)
    includes = [f"-I{HERE}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    defines = ["-DFUSEDLSTM_HOST_SHIM", f"-DFUSEDLSTM_CUDA_MODULE={MODULE}"]
    command = ["g++", *FLAGS, *flags, *defines, *includes, "-isystem", str(headers())]
    _run(*command, "-c", "-x", "c++", str(source), "-o", target)
    return Path(target)


@functools.cache
def _folder() -> str:
    """Where objects lie as long as this process lives."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def guarded(library: ctypes.CDLL, like: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a tensor; behind its end lies a page that the library's kernels must not touch."""
    size = like.numel() * like.element_size()
    address = library.shim_allocate(size)
    if not address:
        raise MemoryError(f"shim_allocate: no memory for {size} bytes")
    buffer = (ctypes.c_char * size).from_address(address)
    weakref.finalize(buffer, library.shim_free, address)
    return torch.frombuffer(buffer, dtype=like.dtype).view(like.shape).copy_(like)
