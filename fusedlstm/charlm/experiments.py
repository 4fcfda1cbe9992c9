"""The experiments of Karpathy's post and of Karpathy, Johnson and Fei-Fei's paper, as tables of settings.

Post: https://karpathy.github.io/2015/05/21/rnn-effectiveness/; paper: https://arxiv.org/abs/1506.02078. Where
the post gives no setting, that of its program char-rnn holds, or one of our own, which the experiment says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusedlstm.charlm.settings import PRESETS

CHARRNN = PRESETS["charrnn"]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the post."""

    title: str
    """What it is, in one line."""
    text: str
    """Which text it reads, and where that is to be had."""
    changes: dict[str, Any]
    """Settings of the full size that differ from char-rnn's."""
    ours: str = ""
    """Which of them the post does not give."""
    bits: float | None = None
    """The validation loss that the post gives, in bits a character."""
    temperatures: tuple[float, ...] = (0.5, 1.0)
    """Of the samples at the end; the lowest stands for the post's `very near zero`."""
    novel: bool = False
    """Whether to count the lines that are not in the text."""
    literal: bytes = b""
    """The text itself, where it is that short."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that differs from the defaults at full size."""
        return CHARRNN | self.changes


EXPERIMENTS: dict[str, Experiment] = {
    "paulgraham": Experiment(
        "Paul Graham's essays, or others: 2 layers of 512, dropout 0.5",
        "about 1 MB of essays. Paul Graham's are at http://www.paulgraham.com/articles.html; free ones to "
        "take their place are Emerson's, https://www.gutenberg.org/ebooks/2944 and /2945",
        {"rnn_size": 512, "num_layers": 2, "dropout": 0.5, "batch_size": 100, "seq_length": 100},
        temperatures=(0.1, 0.5, 1.0),
    ),
    "shakespeare": Experiment(
        "all of Shakespeare: 3 layers of 512",
        "all plays in one file (4.4 MB): "
        "https://cs.stanford.edu/people/karpathy/char-rnn/shakespeare_input.txt; "
        "also --data tinyshakespeare (1.1 MB)",
        {"rnn_size": 512, "num_layers": 3, "dropout": 0.5},
        ours="dropout",
    ),
    "wikipedia": Experiment(
        "100 MB of Wikipedia: 3 layers of 700, the last 4 % for validation",
        "enwik8 (100 MB): http://mattmahoney.net/dc/enwik8.zip, unpacked",
        {"rnn_size": 700, "num_layers": 3, "split": "96/4", "epochs": 7.0},
        bits=1.57,
    ),
    "latex": Experiment(
        "a book of algebraic geometry in LaTeX: 3 layers of 512",
        "the Stacks project, its chapters joined (16 MB): https://github.com/stacks/stacks-project",
        {"rnn_size": 512, "num_layers": 3, "dropout": 0.5},
        ours="rnn_size, num_layers, dropout",
    ),
    "linux": Experiment(
        "Linux' source: 3 layers of 700, about 10 million parameters",
        "C files joined (474 MB in the post, 6.2 MB in the paper): "
        "https://cs.stanford.edu/people/karpathy/char-rnn/linux_input.txt or https://github.com/torvalds/linux",
        {"rnn_size": 700, "num_layers": 3, "dropout": 0.5},
        ours="dropout",
    ),
    "names": Experiment(
        "8,000 baby names, one a line, and how many of those it makes up are new (about 90 % in the post)",
        "names, one a line, shuffled: "
        "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/names.zip; "
        "also --data names (32,000)",
        {"rnn_size": 128, "num_layers": 2, "dropout": 0.25, "seq_length": 25},
        ours="rnn_size, num_layers, dropout, seq_length",
        novel=True,
    ),
    "warandpeace": Experiment(
        "War and Peace: what a model writes after 100, 300, 500, 700, 1200 and 2000 steps",
        "Tolstoy's War and Peace (3.3 MB): "
        "https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt; "
        "also --data warandpeace",
        {
            "rnn_size": 512, "num_layers": 2, "steps": 2000, "epochs": None, "temperature": 1.0,
            "sample_at": (100, 300, 500, 700, 1200, 2000),
        },
        ours="rnn_size, num_layers, temperature",
    ),
    "hello": Experiment(
        "the word hello: 4 letters, 3 hidden units, and the table of logits",
        "it has its text",
        {
            "model": "rnn", "rnn_size": 3, "num_layers": 1, "split": "contiguous", "val_fraction": 0.0,
            "batch_size": 1, "seq_length": 4, "optimizer": "adam", "learning_rate": 0.05,
            "schedule": "constant", "epochs": None, "steps": 300, "sample_length": 0,
        },
        ours="all but the sizes",
        temperatures=(),
        literal=b"hello",
    ),
}  # fmt: skip

# What --scale does to a setting of the full size; steps stay, since the post shows what comes after so many.
SCALED: dict[str, Callable[[Any, float], Any]] = {
    "rnn_size": lambda size, scale: max(min(size, 16), round(size * scale)),
    "epochs": lambda epochs, scale: epochs and max(1.0, epochs * scale),
    "dropout": lambda share, scale: share * scale,  # a small network has little to spare
}


def scaled(experiment: Experiment, scale: float) -> dict[str, Any]:
    """The settings of an experiment at a share of its width, its epochs and its dropout."""
    full = experiment.settings
    return full | {name: change(full[name], scale) for name, change in SCALED.items() if name in full}


# The paper's Figure 1: War and Peace by layers and width. The first of each number of layers have about
# the same number of parameters, and so have the second, the third and the last.
CELLS = {
    "1x64": (1, 64), "1x128": (1, 128), "1x256": (1, 256), "1x512": (1, 512),
    "2x45": (2, 45), "2x84": (2, 84), "2x159": (2, 159), "2x308": (2, 308),
    "3x37": (3, 37), "3x68": (3, 68), "3x126": (3, 126), "3x241": (3, 241),
}  # fmt: skip
# The LSTM's test losses there, in nats a character.
PAPER_NATS = dict(
    zip(
        CELLS,
        (1.449, 1.277, 1.189, 1.161, 1.442, 1.227, 1.137, 1.092, 1.540, 1.279, 1.141, 1.082),
        strict=True,
    )
)
# Its n-grams' by the symbols that they see before the one they predict: one fewer than the order.
PAPER_NGRAM_NATS = {
    1: 2.399, 2: 1.928, 3: 1.521, 4: 1.314, 5: 1.232, 6: 1.203, 7: 1.194, 8: 1.194, 9: 1.194, 20: 1.195,
}  # fmt: skip

# How a cell is trained, by the layers and the width; sample_length 0 since its writing is of no interest.
RECIPES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "paper": lambda layers, size: CHARRNN | {
        "batch_size": 100, "seq_length": 100, "learning_rate_decay": 0.95, "sample_length": 0,
    },
    "fast": lambda layers, size: {
        "batch_size": 32, "seq_length": 50, "learning_rate": 8e-3 if size < 100 else 6e-3, "epochs": 25.0,
        "dtype": "float32", "sample_length": 0,
    },
}  # fmt: skip
