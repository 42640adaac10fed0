"""Texts as numbers: bytes, or the tokens of a `tokenizers` file; and three numbers more behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapformers.core.errors import MapformersError

FILE = "tokenizer.json"


class Tokens:
    """Encodes and decodes. `pad`, `start` and `end` stand behind the `size` numbers of the text itself."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.size = 256 if tokenizer is None else int(tokenizer.get_vocab_size())
        self.pad, self.start, self.end = self.size, self.size + 1, self.size + 2
        self.vocabulary = self.size + 3

    @classmethod
    def named(cls, name: str | None) -> Tokens:
        """Bytes (None), a tokenizer.json, or a name of the hub. Raises MapformersError for others."""
        if name is None:
            return cls()
        from tokenizers import Tokenizer

        path = Path(name).expanduser()
        try:
            return cls(Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name))
        except Exception as error:  # tokenizers raises plain Exception
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise MapformersError(
                f"data: tokenizer must be a tokenizer.json or a name of the hub, got {name} ({first}); check"
                " it"
            ) from None

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        """What `save` has written."""
        path = folder / FILE
        return cls.named(str(path)) if path.exists() else cls()

    def save(self, folder: Path) -> None:
        """Into the data of a run; bytes need no file."""
        if self.tokenizer is not None:
            self.tokenizer.save(str(folder / FILE))

    def encode(self, text: str) -> np.ndarray:
        """[n] uint8 bytes, or int32 tokens."""
        if self.tokenizer is None:
            return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, row: Sequence[int]) -> str:
        """The text of numbers; what is none of the text's own is left out."""
        own = [int(token) for token in row if token < self.size]
        return (
            bytes(own).decode("utf-8", "replace")
            if self.tokenizer is None
            else str(self.tokenizer.decode(own))
        )
