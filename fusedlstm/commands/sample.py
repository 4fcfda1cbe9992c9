"""`fusedlstm sample`: a trained model writes, to the terminal, into files or as JSON."""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from fusedlstm.charlm import draw, settings
from fusedlstm.charlm.beam import write_likeliest
from fusedlstm.charlm.draw import Filters
from fusedlstm.charlm.novelty import lines_of, novelty
from fusedlstm.charlm.sample import Precision, Unknown, Written, load_model, write, write_many
from fusedlstm.charlm.settings import COUNT, CharLMError, Rule, check

WHOLE = settings.RULES["sample_length"]
SEED = settings.RULES["seed"]
RULES: dict[str, Rule] = {
    **draw.RULES,
    "length": WHOLE,
    "beam": WHOLE,
    "samples": COUNT,
    "seed": (lambda v: v is None or SEED[0](v), SEED[1]),
    "stop": (all, "a text of at least one character"),
    "novel_against": (lambda v: all(map(os.path.isfile, v)), "files that are there"),
}
RULE = "-" * 60  # between two texts
# What makes no sense beside --length 0, which never ends, and beside --beam, which draws nothing.
NOT_ENDLESS = "samples", "beam", "out", "novel_against", "json"
NOT_BEAM = "temperature", "top_k", "top_p", "min_p", "seed", "samples", "stop", "precision"


@dataclass(frozen=True)
class Sample:
    """Let a trained model write.

    Raises:
        CharLMError: when a value is out of range, or two of them do not go together.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run."""
    checkpoint: str = "last"
    """Which of its checkpoints: last, best or a step."""
    length: int = 1000
    """Characters to write; 0 writes without end."""
    temperature: float = 0.8
    """Below 1 surer, above 1 wilder; 0 always takes the likeliest character."""
    top_k: int = 0
    """Draw only from so many of the likeliest characters; 0 for all."""
    top_p: float = 1.0
    """Draw only from the likeliest characters that together have this share of the probability."""
    min_p: float = 0.0
    """Draw only from characters at least so many times as likely as the likeliest."""
    beam: int = 0
    """Draw nothing, but search with so many candidates for the likeliest text of this length."""
    prime: str = ""
    """Text to start from."""
    prime_file: str = ""
    """File with the text to start from."""
    unknown: Unknown = "error"
    """What happens to characters of that text which the model has never seen."""
    seed: int | None = None
    """For the same text again; by default each is another."""
    samples: int = 1
    """Texts to write, side by side."""
    out: str = ""
    """Folder to put them in (sample-001.txt, ...) instead of showing them."""
    stop: UseAppendAction[tuple[str, ...]] = ()
    """End a text before this one; may be given again for others."""
    precision: Precision = "float32"
    """Of the weights; fewer bits are faster and a little less exact."""
    novel_against: UseAppendAction[tuple[str, ...]] = ()
    """Count the lines written that are not in this file; may be given again for others."""
    json: bool = False
    """Show the texts and what was counted as JSON."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)
        if self.length == 0:
            self._alone("--length 0", NOT_ENDLESS)
        if self.beam:
            self._alone("--beam", NOT_BEAM)
        if self.prime and self.prime_file:
            raise CharLMError("give --prime or --prime-file, not both")

    def _alone(self, flag: str, others: Sequence[str]) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(self, name) != defaults[name]]
        if given:
            raise CharLMError(f"{flag} goes without {', '.join(given)}")

    def __call__(self) -> None:
        model, vocab = load_model(self.run, self.checkpoint)
        prime, filters = self._prime(), Filters(self.top_k, self.top_p, self.min_p)
        how = self.temperature, self.seed, filters, self.unknown, self.stop, self.precision
        if self.samples == 1 and not (self.beam or self.out or self.novel_against or self.json):
            for piece in write(model, vocab, prime, self.length or None, *how):
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
            return
        counted: dict[str, Any] = {}
        if self.beam:
            found, nats = write_likeliest(model, vocab, prime, self.length, self.beam, self.unknown)
            texts, counted["log_probability"] = [found], nats
            bits = -nats / math.log(2) / self.length
            print(f"log-probability: {nats:.4f} nats, {bits:.4f} bits/char", file=sys.stderr)
        else:
            texts = write_many(model, vocab, prime, self.length, *how, self.samples)
        if self.novel_against:
            lines = [line for t in texts for line in lines_of(t.prime, t.text, t.stopped)]
            novel = novelty(lines, self.novel_against)
            counted |= asdict(novel)
            print(novel, file=sys.stderr)
        self._give(texts, counted)

    def _prime(self) -> bytes:
        if not self.prime_file:
            return self.prime.encode("utf-8", "surrogateescape")
        try:
            return Path(self.prime_file).read_bytes()
        except OSError as error:
            raise CharLMError(f"--prime-file: cannot read {self.prime_file}: {error.strerror}") from None

    def _give(self, written: Sequence[Written], counted: dict[str, Any]) -> None:
        """Shows the texts or puts them into files."""
        texts = [text.prime + text.text for text in written]
        if self.out:
            _keep(Path(self.out), texts)
        if self.json:
            print(json.dumps({"texts": texts, **counted}))
        elif not self.out:
            print(f"\n{RULE}\n".join(texts))


def _keep(folder: Path, texts: Sequence[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, text in enumerate(texts, 1):
            (folder / f"sample-{i:03}.txt").write_text(text, "utf-8", newline="")
    except OSError as error:
        raise CharLMError(f"--out: cannot write to {folder}: {error.strerror}") from None
