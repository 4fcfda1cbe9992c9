"""Imports go one way: cli, charlm, the modules, functional, ops, the registry, one backend lazily, _C."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fusedlstm

PACKAGE = Path(fusedlstm.__file__).parent
# Each module's prefix and how high it stands: it may import only what stands lower. The first that fits
# counts.
NATIVE = ("fusedlstm._C", "fusedlstm._cuda")
PRODUCTS = "fusedlstm.backends.products"  # what backends share, and no backend
HEIGHTS = [
    ("fusedlstm.reference", 0), ("fusedlstm.dynamo", 0), *((name, 0) for name in NATIVE),
    ("fusedlstm.timing", 0), ("fusedlstm.resets", 0),
    (PRODUCTS, 2), ("fusedlstm.backends.", 3), ("fusedlstm.backends", 1),
    ("fusedlstm.contract", 4), ("fusedlstm.ops", 5), ("fusedlstm.functional", 6), ("fusedlstm.nn", 7),
    ("fusedlstm.convert", 8), ("fusedlstm.charlm", 10), ("fusedlstm.bench", 11),
    ("fusedlstm.generate", 8), ("fusedlstm.commands", 12), ("fusedlstm.cli", 13),
    ("fusedlstm.__main__", 14), ("fusedlstm", 9),
]  # fmt: skip


def height(module: str) -> int:
    return next(h for prefix, h in HEIGHTS if module == prefix or module.startswith(prefix.rstrip(".") + "."))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(module: str, tree: ast.AST) -> set[str]:
    """Full names of all that a module imports, at its top or inside its functions."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            # What is imported may itself be a module.
            found |= {
                f"{base}.{a.name}" if f"{base}.{a.name}" in (*MODULES, *NATIVE) else base for a in node.names
            }
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    for imported in imports(module, tree):
        if imported.partition(".")[0] == "fusedlstm" and imported.rpartition(".")[0] != module:
            folders = "fusedlstm.charlm", "fusedlstm.backends.cuda", "fusedlstm.backends.triton"
            same_folder = any(module.startswith(f) and imported.startswith(f) for f in folders)
            assert same_folder or height(imported) < height(module), f"{module} imports {imported}"


def test_the_registry_imports_no_backend_by_itself() -> None:
    for module in (
        "fusedlstm",
        "fusedlstm.backends",
        "fusedlstm.ops",
        "fusedlstm.functional",
        "fusedlstm.nn",
    ):
        found = imports(module, ast.parse(MODULES[module].read_text()))
        backends = {name for name in found if name.startswith("fusedlstm.backends.")} - {PRODUCTS}
        assert not backends, f"{module} imports {backends}"


def test_the_reference_imports_only_numpy() -> None:
    found = imports("fusedlstm.reference", ast.parse(MODULES["fusedlstm.reference"].read_text()))
    assert found <= {"__future__", "collections.abc", "typing", "numpy"}
    for module, path in MODULES.items():
        if module != "fusedlstm.reference":
            assert "fusedlstm.reference" not in imports(module, ast.parse(path.read_text())), module


def test_importing_the_package_loads_no_compiler_and_no_backend() -> None:
    program = (
        "import sys, fusedlstm\n"
        f"lazy = 'torch._dynamo', 'triton', 'fusedlstm.backends.', *{NATIVE}\n"
        f"print([name for name in sys.modules if name.startswith(lazy) and name != '{PRODUCTS}'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"
