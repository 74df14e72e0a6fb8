"""The corpus of the reference character language model.

The text is the source of some packages of Python's own standard library, so that every machine
has it and nothing is downloaded. It is pinned by a hash: another Python version has other text,
and `corpus` says so instead of passing it off as the same.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint8]

PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "dbm", "email", "ensurepip", "html", "http",
    "importlib", "json", "logging", "multiprocessing", "re", "sqlite3", "tomllib", "unittest",
    "urllib", "venv", "wsgiref", "xml", "xmlrpc", "zoneinfo",
)  # fmt: skip
"""Packages whose ``.py`` files make the corpus; their ``test`` folders are left out."""

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
"""Token ``i + 1`` is ``CHARACTERS[i]``; token 0 is every other character."""

VOCABULARY = len(CHARACTERS) + 1

PINNED = "a3c08fa6f618ba95"
"""First 16 hexadecimal digits of the SHA-256 of the text that the model was trained on."""

UNPINNED = "the standard library of this Python is not the text that the model was trained on"


@dataclass(frozen=True)
class Corpus:
    """Token streams of the three parts, which share no file.

    Attributes:
        train: tokens that training may see, shape ``[n]``, dtype uint8.
        valid: tokens that choose, shape ``[n]``.
        test: tokens that are only reported, shape ``[n]``.
        pinned: whether the text is byte for byte that of the committed model.
    """

    train: Tokens
    valid: Tokens
    test: Tokens
    pinned: bool


def encode(text: str) -> Tokens:
    """Returns one token a character, shape ``[len(text)]``; tabs count as four spaces."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for index, character in enumerate(CHARACTERS):
        table[ord(character)] = index + 1
    codes = np.frombuffer(text.expandtabs(4).encode("utf-32-le"), dtype=np.uint32)
    return table[codes]


def decode(tokens: npt.NDArray[np.integer]) -> str:
    """Returns the text of tokens of shape ``[n]``; token 0 becomes a replacement character."""
    return "".join("\ufffd" if token == 0 else CHARACTERS[token - 1] for token in tokens)


def corpus(root: Path | None = None) -> Corpus:
    """Reads the corpus from a standard library.

    Files are ordered by the hash of their name; the first twentieth (by characters) is the test
    part, the next is the validation part, the rest is for training, so that no file is in two.

    Args:
        root: folder of the standard library; the running interpreter's where None.

    Raises:
        FileNotFoundError: the folder holds none of the packages (a stripped installation).
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    names = sorted(
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if "test" not in path.parts[len(root.parts) :] and "tests" not in path.parts[len(root.parts) :]
    )
    if not names:
        raise FileNotFoundError(
            f"{root}: the standard library's sources are not there (a stripped Python?); "
            "install them, or pass --data with text of your own"
        )
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    texts = [(root / name).read_text(encoding="utf-8") for name in names]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    bounds = np.cumsum([len(text) for text in texts]) / sum(len(text) for text in texts)
    first, second = (int(np.searchsorted(bounds, share)) for share in (0.05, 0.10))
    parts = (texts[second:], texts[first:second], texts[:first])
    train, valid, test = (encode("".join(part)) for part in parts)
    return Corpus(train, valid, test, digest == PINNED)


def model_path() -> Path:
    """Returns the path of the committed ONNX file."""
    return Path(str(files("lstmopt.reference").joinpath("char_lm.onnx")))
