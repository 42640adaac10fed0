"""Text from a model, byte by byte as it comes.

Invalid UTF-8 and control characters are shown as replacement characters.
"""

import codecs
import unicodedata
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from mapformers.core.errors import require

FIRST = "\n"  # what an empty prompt stands for: a model needs one byte to start from


class ByteStreamer(BaseStreamer):
    """Hands text to `write` as soon as the bytes of a character are complete."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.in_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Called by generate: first with the prompt, then with each new byte."""
        if self.in_prompt:
            self.in_prompt = False
            return
        self._emit(self.decoder.decode(bytes(value.flatten().tolist())))

    def end(self) -> None:
        """Called by generate at the end."""
        self._emit(self.decoder.decode(b"", final=True))

    def _emit(self, text: str) -> None:
        if text:
            self.write(printable(text))


def printable(text: str) -> str:
    """The text with control characters (escape sequences among them) replaced, so that no model steers a
    terminal.
    """
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def generate_bytes(
    model: Any,
    prompt: str,
    count: int,
    temperature: float = 0.8,
    seed: int = 0,
    write: Callable[[str], None] | None = None,
) -> bytes:
    """`count` new bytes after the prompt. Temperature 0 takes the likeliest byte each time; else bytes are
    drawn.

    The global generator of torch, which transformers draws from, is put back as it was.
    Raises MapformersError for options out of range and for models that cannot decode.
    """
    require(count >= 1, f"generate: --max-new-tokens must be 1 or more, got {count}; raise it")
    require(
        temperature >= 0,
        f"generate: --temperature must be 0 or more, got {temperature}; 0 takes the likeliest byte",
    )
    require(0 <= seed < 2**63, f"generate: --seed must lie in 0..2^63-1, got {seed}; choose another")
    start = (prompt or FIRST).encode("utf-8", "surrogateescape")
    device = next(model.parameters()).device
    tokens = torch.tensor([list(start)], dtype=torch.long, device=device)
    options: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            streamer=ByteStreamer(write) if write is not None else None,
            **options,
        )
    return bytes(out[0, len(start) :].tolist())
