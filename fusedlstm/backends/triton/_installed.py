"""Whether the kernels' compiler is there: imported first, it raises ImportError with what to install."""

from __future__ import annotations

NEEDED = (3, 6)


def check() -> None:
    """Raises ImportError unless triton is installed, and no older than NEEDED."""
    needed = ".".join(map(str, NEEDED))
    advice = f"the kernels need triton {needed} or newer: pip install 'triton>={needed}'"
    try:
        import triton
    except ImportError as error:
        raise ImportError(f"triton cannot be imported, {advice}") from error
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < NEEDED:
        raise ImportError(f"triton is {triton.__version__}, {advice}")


check()
