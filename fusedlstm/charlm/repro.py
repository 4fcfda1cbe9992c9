"""The experiments of the post and of the paper, run again, each with a report of what came out."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusedlstm.charlm import checkpoint, corpus
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.evaluate import evaluate
from fusedlstm.charlm.experiments import (
    CELLS,
    EXPERIMENTS,
    PAPER_NATS,
    PAPER_NGRAM_NATS,
    RECIPES,
    Experiment,
    scaled,
)
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.ngram import NGram
from fusedlstm.charlm.novelty import Novelty, lines_of
from fusedlstm.charlm.report import bits
from fusedlstm.charlm.sample import load_model, write
from fusedlstm.charlm.settings import CharLMError, Settings, check
from fusedlstm.charlm.streams import Streams
from fusedlstm.charlm.train import train
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.charlm.watch import SAMPLES

REPORT = "REPORT.md"
SAMPLE_LENGTH = 2000
NAMES_LENGTH = 20_000  # characters from which the share of new lines is taken
SEED = 1
STREAMS, CHUNK = 100, 100  # of the paper's split
AT_ONCE = 1000  # steps of an evaluation between two looks at the loss
SCALE = (lambda v: 0 < v <= 1, "above 0 and at most 1")


def post(name: str, files: Sequence[str], data: str, scale: float, out: str) -> Path:
    """Runs one experiment of the post, or goes on with it, and writes its report.

    Args:
        name: in EXPERIMENTS.
        files, data: the text, as Settings takes it.
        scale: share of the full size, above 0 and at most 1.
        out: folder of the run, the report in it; "" for runs/NAME-OF-THE-EXPERIMENT.

    Returns:
        The report.

    Raises:
        CharLMError: when no text is given (the message says where it is to be had), or as train does.
    """
    check("scale", scale, SCALE)
    experiment, folder = EXPERIMENTS[name], Path(out or f"runs/{name}")
    if experiment.literal:
        files = [str(_file(folder / f"{name}.txt", experiment.literal))]
    values = scaled(experiment, scale) | text_of(name, experiment.text, files, data)
    settings = _trained(Settings().but(values | {"out": str(folder)}))
    text, saved = corpus.load(settings), checkpoint.load(folder)
    model, vocab = load_model(folder, "best" if any("val" in m for m in saved.metrics) else "last")
    parts = [
        *_heading(experiment, scale, saved, text),
        *_losses(experiment, saved),
        "## Samples\n" if experiment.temperatures else "",
        *(_sample(model, vocab, temperature) for temperature in experiment.temperatures),
        *_evolution(folder, settings.sample_at),
        _novelty(model, text) if experiment.novel else "",
        _logits(model, vocab, text) if experiment.literal else "",
    ]
    return _written(folder, parts)


def text_of(name: str, wanted: str, files: Sequence[str], data: str) -> dict[str, Any]:
    """The settings that say what is read.

    Raises:
        CharLMError: when nothing is given.
    """
    if not files and not data:
        raise CharLMError(f"repro {name} needs a FILE (or --data): {wanted}")
    return {"files": tuple(files)} | ({"data": data} if data else {})


def paper(
    files: Sequence[str], data: str, cells: Sequence[str], kinds: Sequence[str], recipe: str, out: str
) -> Path:
    """Trains cells of the paper's table and sets their test losses beside the paper's.

    Args:
        files, data: the text, as Settings takes it; the paper's is War and Peace.
        cells: in CELLS.
        kinds: of layers: lstm, gru, rnn.
        recipe: in RECIPES.
        out: folder, with a run for each cell; "" for runs/paper. What is done in it is not trained again.

    Returns:
        The report, which is written anew after each cell.

    Raises:
        CharLMError: when the text or a cell does not serve.
    """
    unknown = sorted(set(cells) - set(CELLS))
    if unknown:
        raise CharLMError(f"--cells must be of {', '.join(CELLS)}, got {', '.join(unknown)}")
    folder, rows = Path(out or "runs/paper"), []
    text = corpus.load(Settings().but(text_of("paper", EXPERIMENTS["warandpeace"].text, files, data)))
    parts = paper_parts(text.ids)
    symbols = np.frombuffer(text.vocab.symbols.encode("latin-1"), np.uint8)
    arranged = _file(folder / f"{text.name}.txt", symbols[np.concatenate(parts)].tobytes())
    split = "/".join(f"{len(part) / 1000}K" for part in parts)
    for kind in kinds:
        for cell in cells:
            layers, size = CELLS[cell]
            run = str(folder / f"{kind}-{cell}-{recipe}")
            recipe_of_cell = RECIPES[recipe](layers, size) | {
                "model": kind,
                "num_layers": layers,
                "rnn_size": size,
            }
            settings = Settings().but(
                recipe_of_cell | {"files": (str(arranged),), "split": split, "out": run}
            )
            rows.append(_cell(kind, cell, _trained(settings)))
            report = _written(folder, _paper_report(recipe, rows))
    return report


def paper_parts(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The paper's parts for training, validation and test, which lie all over the text.

    As char-rnn does it, the text is 100 streams of chunks of 100; of each stream the first 80 % of the
    chunks, the next 10 % and the others make up the parts. The paper does not say so, but its figures for
    n-grams, to the last digit, are those of this split (docs/repro.md).

    Args:
        ids: the text [N].

    Raises:
        CharLMError: when a part would be empty.
    """
    chunks = len(ids) // (STREAMS * CHUNK)
    cuts = [int(0.8 * chunks), int(0.8 * chunks) + int(0.1 * chunks)]
    if chunks < 10:
        least = f"at least {10 * STREAMS * CHUNK:,} ids for parts of 80, 10 and 10 %"
        raise CharLMError(f"the text must have {least}, got {len(ids):,}")
    streams = ids[: STREAMS * chunks * CHUNK].reshape(STREAMS, -1)
    train, val, test = (part.ravel() for part in np.split(streams, [cut * CHUNK for cut in cuts], axis=1))
    return train, val, test


def ngram(files: Sequence[str], data: str, orders: Sequence[int]) -> list[tuple[int, float, float]]:
    """The n-gram baseline of a text.

    Args:
        files, data: the text, as Settings takes it.
        orders: symbols of the longest n-grams.

    Returns:
        For each order its loss in nats on the validation and on the test part of the paper's split.

    Raises:
        CharLMError: when there is no text, or it is too short.
    """
    text = corpus.load(Settings().but(text_of("ngram", EXPERIMENTS["warandpeace"].text, files, data)))
    train, *rest = paper_parts(text.ids)
    model = NGram(train, len(text.vocab), max(orders))
    val, test = (model.losses(part).mean(1) for part in rest)
    return [(order, float(val[order - 1]), float(test[order - 1])) for order in orders]


def ngram_table(losses: Iterable[tuple[int, float, float]]) -> str:
    """The losses of n-grams as a Markdown table, beside the paper's."""
    rows = [
        (order, f"{val:.3f}", f"{test:.3f}", f"{bits(test):.3f}", _or_dash(PAPER_NGRAM_NATS.get(order - 1)))
        for order, val, test in losses
    ]
    return table(("order", "validation, nats", "test, nats", "test, bits", "the paper's test, nats"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, all columns but the first flush right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _trained(settings: Settings) -> Settings:
    """Trains, or goes on with the run that the folder holds; returns the settings of the run."""
    if checkpoint.exists(settings.out):
        begun = checkpoint.load(settings.out).settings
        # A batch that the text cannot fill was made smaller.
        here = tuple(str(Path(file).resolve()) for file in settings.files)
        same = replace(settings, files=here, batch_size=begun.batch_size, seq_length=begun.seq_length)
        if same != begun:
            differing = [f.name for f in fields(Settings) if getattr(same, f.name) != getattr(begun, f.name)]
            raise CharLMError(f"--out {settings.out} holds a run of other settings ({', '.join(differing)})")
        train(begun, settings.out)
    else:
        train(settings)
    return checkpoint.load(settings.out).settings


def _cell(kind: str, cell: str, settings: Settings) -> tuple[object, ...]:
    """A row of the paper's table: the best checkpoint by validation reads the whole test part."""
    text, saved = corpus.load(settings), checkpoint.load(settings.out)
    model, _ = load_model(settings.out, "best")
    began = time.perf_counter()
    test = evaluate(model, Streams(text.split(settings).test, 1), AT_ONCE, torch.float32)
    published = PAPER_NATS[cell] if kind == "lstm" else None
    return (
        f"{kind} {cell}", f"{test:.3f}", _or_dash(published), f"{_best(saved):.3f}",
        f"{saved.seconds / 60:.1f}", f"{time.perf_counter() - began:.0f}", torch.get_num_threads(),
    )  # fmt: skip


def _paper_report(recipe: str, rows: Sequence[tuple[object, ...]]) -> list[str]:
    head = ("cell", "test, nats", "the paper's", "validation, nats", "minutes", "test, s", "threads")
    return [
        f"# Cells of arXiv 1506.02078, Figure 1, by the recipe `{recipe}`\n",
        "The best checkpoint by validation reads the whole test part as one text, its state carried on.\n",
        table(head, rows),
    ]


def _heading(experiment: Experiment, scale: float, saved: Checkpoint, text: Corpus) -> list[str]:
    settings, default = saved.settings, Settings()
    differing = {f.name for f in fields(Settings) if getattr(settings, f.name) != getattr(default, f.name)}
    lines = settings.to_toml().splitlines()
    shown = [line for line in lines if line.partition(" ")[0] in differing - {"files", "out"}]
    source = "https://karpathy.github.io/2015/05/21/rnn-effectiveness/"
    return [
        f"# {experiment.title}\n",
        f"After {source}, at {scale:g} of its size."
        + (f" Not from there: {experiment.ours}." if experiment.ours else "")
        + "\n",
        f"The text is {text.name}: {len(text.ids):,} {text.vocab.kind}, {len(text.vocab)} different, "
        f"sha256 `{text.sha256}`.\n",
        "```toml\n" + "\n".join(shown) + "\n```\n",
    ]


def _losses(experiment: Experiment, saved: Checkpoint) -> list[str]:
    settings, best = saved.settings, _best(saved)
    chars = saved.step * settings.batch_size * settings.seq_length
    rows = [
        ("steps", f"{saved.step:,}"),
        ("minutes", f"{saved.seconds / 60:.1f}"),
        ("characters a second, pauses and all", f"{chars / max(saved.seconds, 1e-9):,.0f}"),
        ("training loss at the end, bits a character", f"{bits(saved.metrics[-1]['train']):.3f}"),
        ("lowest validation loss, bits a character", f"{bits(best):.3f}" if best < math.inf else "-"),
        ("the post's validation loss, bits a character", _or_dash(experiment.bits)),
    ]
    curve = "![Losses by step](loss.png)\n" if (Path(settings.out) / "loss.png").exists() else ""
    return [table(("", ""), rows), curve]


def _best(saved: Checkpoint) -> float:
    return min((metrics["val"] for metrics in saved.metrics if "val" in metrics), default=math.inf)


def _sample(model: CharLM, vocab: Vocab, temperature: float) -> str:
    text = "".join(write(model, vocab, "", SAMPLE_LENGTH, temperature, SEED))
    return f"### Temperature {temperature:g}\n\n{_fenced(text)}"


def _evolution(folder: Path, steps: Sequence[int]) -> list[str]:
    files = {step: folder / SAMPLES / f"step-{step:08}.txt" for step in steps}
    parts = [
        f"### After {step} steps\n\n{_fenced(file.read_text('utf-8'))}"
        for step, file in files.items()
        if file.exists()  # a run that another --scale made shorter has not got so far
    ]
    return ["## While it was trained\n", *parts] if parts else []


def _novelty(model: CharLM, text: Corpus) -> str:
    decoder = text.vocab.decoder()
    known = {line.strip() for line in (decoder.piece(text.ids.tolist()) + decoder.end()).splitlines()}
    lines = lines_of("", "".join(write(model, text.vocab, "", NAMES_LENGTH, 1.0, SEED)), whole=False)
    found = Novelty(sum(line not in known for line in lines), len(lines))
    return f"## New names\n\nAt temperature 1: {found}. In the post about 90 % of them are new.\n"


@torch.inference_mode()
def _logits(model: CharLM, vocab: Vocab, text: Corpus) -> str:
    """What the model gives to each letter after each of the text's."""
    logits = model(torch.from_numpy(text.ids[:-1].astype("int64"))[:, None])[0][:, 0]
    letters, rows = vocab.symbols, []
    for read, right, row in zip(text.ids[:-1], text.ids[1:], logits, strict=True):
        shown = (f"{logit:.1f}" for logit in row)
        rows.append((f"{letters[read]} → {letters[right]}", *shown, letters[row.argmax()]))
    return "## Logits\n\n" + table(("reads → next", *vocab.symbols, "predicts"), rows)


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in text.split() if set(run) == {"`"}), default=0))
    return f"{fence}text\n{text}\n{fence}\n"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _file(file: Path, text: bytes) -> Path:
    """A file with a text that was made here."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    except OSError as error:
        raise CharLMError(f"cannot write {file}: {error.strerror}") from None
    return file


def _written(folder: Path, parts: Iterable[str]) -> Path:
    report = folder / REPORT
    try:
        report.write_text("\n".join(part for part in parts if part), "utf-8")
    except OSError as error:
        raise CharLMError(f"cannot write {report}: {error.strerror}") from None
    return report
