"""`fusedlstm convert`: a run's weights for plain torch, a run of such weights, and either in 16 bits."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tyro.conf import Positional, arg

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.vocab import Vocab

FORMAT = 1
WEIGHTS = ".safetensors"
KINDS: dict[int, Literal["lstm", "gru", "rnn"]] = {4: "lstm", 3: "gru", 1: "rnn"}  # by their gates
SIZES = ("model", "rnn_size", "num_layers", "embedding", "tied")
TORCH7 = "Torch7 serialisation (char-rnn, torch-rnn), which is not read: save its tensors as safetensors"
PICKLE = "pickle, which could run any code and is not read: save its state_dict as safetensors"
REFUSED = {".t7": TORCH7, **dict.fromkeys((".pt", ".pth", ".pkl", ".ckpt", ".bin"), PICKLE)}


@dataclass(frozen=True)
class Convert:
    """Give a run's weights to plain torch, or make a run of weights that plain torch has trained.

    --to torch writes OUT.safetensors, the state_dict of a module with the parts rnn (LSTM, GRU, or RNN with
    tanh), decoder (Linear) and, if the model has one, embedding; and OUT.json, its sizes and vocabulary:

        about = json.load(open("OUT.json"))
        V, H, L = about["vocab_size"], about["rnn_size"], about["num_layers"]
        model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(V, H, L), "decoder": torch.nn.Linear(H, V)})
        model.load_state_dict(safetensors.torch.load_file("OUT.safetensors"))
        ids = torch.tensor([about["vocab"]["symbols"].index(c) for c in "a text"])
        y, state = model["rnn"](torch.nn.functional.one_hot(ids, V).float())
        logits = model["decoder"](y)

    --to charlm makes a run of such a file; its JSON must hold the vocabulary, the symbols in the order of the
    ids: {"vocab": {"kind": "chars", "symbols": "..."}} (kind bytes: the characters of those numbers).
    """

    source: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of a run, or a .safetensors file of the form above, its .json beside it."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """What to make: a .safetensors file, or with --to charlm the folder of a run."""
    to: Literal["torch", "charlm"] = "torch"
    """For plain torch, or for this program."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the weights are stored; 16 bits halve the file, and are float32 again once loaded."""
    checkpoint: str = "last"
    """Which of the run's checkpoints: last, best or a step."""

    def __call__(self) -> None:
        source, out = Path(self.source), Path(self.out)
        if source.suffix in REFUSED:
            got = f"{source}: a {REFUSED[source.suffix]}"
            raise CharLMError(f"RUN must be a run or a {WEIGHTS} file, got {got}")
        found = _read(source) if source.suffix == WEIGHTS else checkpoint.load(source, self.checkpoint)
        weights = _stored(found.part("ema.") or found.part("model."), self.dtype)
        if self.to == "charlm":
            _write_run(out, found, weights)
        else:
            _write_torch(out, found, weights, self.dtype)
        print(f"wrote {out}")


def _stored(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The weights in another type."""
    stored = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    for name, tensor in stored.items():
        if tensor.isinf().any() and not weights[name].isinf().any():
            largest = weights[name].abs().max()
            raise CharLMError(f"--dtype {dtype} must hold the weights, got {name} up to {largest:g}")
    return stored


def _write_run(out: Path, found: Checkpoint, weights: dict[str, Tensor]) -> None:
    """A run that writes; it cannot be trained on, for want of an optimizer."""
    if checkpoint.exists(out):
        raise CharLMError(f"OUT must be a new folder, {out} holds a run")
    model = {f"model.{name}": tensor for name, tensor in weights.items()}
    checkpoint.save(out, Checkpoint(**vars(found) | {"tensors": model}))


def _write_torch(out: Path, found: Checkpoint, weights: dict[str, Tensor], dtype: str) -> None:
    """The weights under torch's names, and what they are, as two files or none."""
    settings, about = found.settings, out.with_suffix(".json")
    if out.suffix != WEIGHTS:
        raise CharLMError(f"OUT must be a {WEIGHTS} file, got {out}")
    for file in (out, about):
        if file.exists():
            raise CharLMError(f"OUT must be a new file, {file} exists")
    if not CharLM.from_settings(settings, len(found.vocab)).plain:
        form = "has no plain torch form: its h and c are mixtures of two steps'"
        raise CharLMError(f"a model with --zoneout {settings.zoneout} {form}")
    tensors = {_torch_name(name): tensor for name, tensor in weights.items()}
    if settings.tied:
        tensors["embedding.weight"] = tensors["decoder.weight"].clone()
    record = {
        "format": FORMAT,
        **{name: value for name, value in asdict(settings).items() if name in SIZES},
        "vocab_size": len(found.vocab),
        "vocab": found.vocab.record(),
        "dtype": dtype,
        "step": found.step,
        "text_sha256": found.text_sha256,
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_whole(out, safetensors.torch.save(tensors))
        checkpoint.write_whole(about, json.dumps(record, indent=1).encode())
    except OSError as error:
        for file in (out, about):
            file.unlink(missing_ok=True)
        raise CharLMError(f"cannot write {out} and {about}: {error.strerror}") from error


def _torch_name(name: str) -> str:
    """lstm.weight_ih_l0 -> rnn.weight_ih_l0, the layers under one name whatever they are."""
    return re.sub(r"^(lstm|gru|rnn)\.", "rnn.", name)


def _read(file: Path) -> Checkpoint:
    """A model of torch's, as a run that has not been trained here."""
    about = file.with_suffix(".json")
    try:
        tensors = {n: t.float() for n, t in safetensors.torch.load(file.read_bytes()).items()}
        record = json.loads(about.read_bytes())["vocab"]
        kind, symbols = record["kind"], record["symbols"]
        vocab = Vocab.from_record({"kind": kind, "symbols": "".join(sorted(symbols))})
    except OSError as error:
        raise CharLMError(f"cannot read {error.filename}: {error.strerror}") from None
    except safetensors.SafetensorError as error:
        raise CharLMError(f"{file} is no {WEIGHTS} file: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"vocab": {"kind": "chars", "symbols": "…"}}'
        raise CharLMError(f"{about} must be like {example}, got another JSON: {error!r}") from None
    settings = _sizes(file, tensors)
    expected = CharLM.from_settings(settings, len(vocab)).state_dict()
    if settings.tied:
        del tensors["embedding.weight"]  # the decoder's
    names = {_torch_name(name): name for name in expected}
    for what, odd in (("lacks", names.keys() - tensors), ("must not have", tensors.keys() - names)):
        if odd:
            raise CharLMError(f"{file} {what} {', '.join(sorted(odd))}: see fusedlstm convert --help")
    order = torch.tensor(sorted(range(len(symbols)), key=symbols.__getitem__))
    model = {}
    for name, ours in names.items():
        if tensors[name].shape != expected[ours].shape:
            got = f"{list(expected[ours].shape)} with {len(vocab)} symbols, got {list(tensors[name].shape)}"
            raise CharLMError(f"{name} of {file} must be {got}")
        model[f"model.{ours}"] = _ordered(name, tensors[name], order, settings)
    return Checkpoint(settings, vocab, "", tensors=model)


def _sizes(file: Path, tensors: dict[str, Tensor]) -> Settings:
    """The settings that a model's tensors tell."""
    try:
        gates, H = tensors["rnn.weight_hh_l0"].shape
        tensors["decoder.weight"]
    except (KeyError, ValueError) as error:
        expected = "rnn.weight_hh_l0 [gates · H, H] and decoder.weight"
        raise CharLMError(f"{file} must have {expected}, got {error}") from None
    if H == 0 or gates % H or gates // H not in KINDS:
        expected = "[gates · H, H] of an LSTM, GRU or RNN"
        raise CharLMError(f"rnn.weight_hh_l0 of {file} must be {expected}, got {[gates, H]}")
    table = tensors.get("embedding.weight")
    return Settings(
        model=KINDS[gates // H],
        rnn_size=H,
        num_layers=sum(re.fullmatch(r"rnn\.weight_hh_l\d+", name) is not None for name in tensors),
        embedding=0 if table is None else table.shape[-1],
        tied=table is not None and torch.equal(table, tensors["decoder.weight"]),
    )


def _ordered(name: str, tensor: Tensor, order: Tensor, settings: Settings) -> Tensor:
    """A tensor with its characters in ascending order, as ours are, whatever the order of torch's ids was."""
    if name in ("decoder.weight", "decoder.bias", "embedding.weight"):
        return tensor[order]
    return tensor[:, order] if name == "rnn.weight_ih_l0" and not settings.embedding else tensor
