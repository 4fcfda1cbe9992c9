"""Builds fusedlstm._C, and fusedlstm._cuda where nvcc is, with CMake; everything else is in pyproject.toml.

FUSEDLSTM_CUDA (AUTO, ON, OFF) and FUSEDLSTM_CUDA_ARCHITECTURES of the environment are options of CMake.
"""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NEEDS = (
    "fusedlstm's engine is C++20 and needs GCC 11 or newer (CXX names it) and this Python's headers; "
    "its CUDA kernels need an nvcc that knows the architectures; FUSEDLSTM_CUDA=OFF leaves them out"
)


class CMakeExtension(Extension):
    """A module that CMakeLists.txt builds and installs into its package."""

    def __init__(self, name: str, optional: bool = False) -> None:
        super().__init__(name, sources=[], optional=optional)


class CMakeBuild(build_ext):
    """Configures, builds and installs with CMake where setuptools expects the module."""

    def build_extension(self, ext: Extension) -> None:
        if ext.optional:  # one call builds all
            return
        source = Path(__file__).parent.resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build.mkdir(parents=True, exist_ok=True)
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # may name tools of a build environment now gone
        configure = [
            "-GNinja",
            f"-DCMAKE_INSTALL_PREFIX={package.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        for option in ("FUSEDLSTM_CUDA", "FUSEDLSTM_CUDA_ARCHITECTURES"):
            configure += [f"-D{option}={os.environ[option]}"] if option in os.environ else []
        try:
            subprocess.run(["cmake", "-S", source, "-B", build, *configure], check=True)
            subprocess.run(["cmake", "--build", build], check=True)
            subprocess.run(["cmake", "--install", build], check=True)
        except FileNotFoundError as error:
            raise CompileError(f"cannot run {error.filename}: pip install cmake ninja") from None
        except subprocess.CalledProcessError:
            raise CompileError(f"{NEEDS}; what went wrong stands above") from None


setup(
    ext_modules=[CMakeExtension("fusedlstm._C"), CMakeExtension("fusedlstm._cuda", optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
