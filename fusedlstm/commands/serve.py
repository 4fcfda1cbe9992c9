"""`fusedlstm serve`: a page and an endpoint where a trained model writes."""

import ipaddress
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from fusedlstm.charlm.sample import load_model
from fusedlstm.charlm.settings import COUNT, CharLMError, Rule, check

RULES: dict[str, Rule] = {
    "port": (lambda v: type(v) is int and 0 <= v < 2**16, "a whole number from 0 (any free one) to 65535"),
    "max_length": COUNT,
    "max_streams": COUNT,
}
WAITING = 64  # connections beside those that a text is written to
GRACE_SECONDS = 1  # for texts in the making when the server ends


@dataclass(frozen=True)
class Serve:
    """Let a trained model write over HTTP: a page, and an endpoint that streams.

    Raises:
        CharLMError: when a value is out of range.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run."""
    checkpoint: str = "last"
    """Which of its checkpoints: last, best or a step."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is for this machine only."""
    port: int = 8000
    """Port to listen at."""
    max_length: int = 10_000
    """Most characters that one request may ask for."""
    max_streams: int = 4
    """Texts in the making at a time."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)

    def __call__(self) -> None:
        try:
            import uvicorn

            from fusedlstm.charlm.serve import Limits, app
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            if package not in ("uvicorn", "starlette"):
                raise
            raise CharLMError(f"serving needs {package}: pip install fusedlstm[serve]") from None
        model, vocab = load_model(self.run, self.checkpoint)
        config = uvicorn.Config(
            app(model, vocab, Limits(self.max_length, self.max_streams)),
            log_level="warning",
            limit_concurrency=self.max_streams + WAITING,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        with _listener(self.host, self.port) as listener:
            host = f"[{self.host}]" if ":" in self.host else self.host
            print(
                f"serving {self.run} at http://{host}:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True
            )
            if not _is_local(self.host):
                print(f"warning: {self.host} lets other machines in, without a password", file=sys.stderr)
            with suppress(KeyboardInterrupt):  # which uvicorn raises again when all is closed
                uvicorn.Server(config).run([listener])


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CharLMError(f"cannot listen at --host {host} --port {port}: {error.strerror}") from None


def _is_local(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
