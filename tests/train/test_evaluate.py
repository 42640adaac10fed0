"""Bits per byte: every byte but the first, once, with the context claimed; decoding against one pass."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mapformers.core.errors import MapformersError
from mapformers.models import MapformerConfig, MapformerForCausalLM
from mapformers.train.evaluate import bits_per_byte, byte_losses, prefix_only
from mapformers.train.generate import ByteStreamer, generate_bytes, printable
from tests.train.tiny import text

TEXT = np.frombuffer(text(300), dtype=np.uint8)


class Counting(nn.Module):
    """Gives the byte that really follows the probability 2^-(1 + number of bytes it can see)."""

    def __init__(self, stream: np.ndarray) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.stream = stream

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        batch, n = input_ids.shape
        logits = torch.full((batch, n, 256), -1e9, dtype=torch.float64)
        for b in range(batch):
            for i in range(n - 1):
                share = 2.0 ** -(2 + i)
                logits[b, i] = math.log((1 - share) / 255)
                logits[b, i, input_ids[b, i + 1]] = math.log(share)
        return SimpleNamespace(logits=logits)


def expected_bits(size: int, context: int, stride: int) -> float:
    """By the definition: windows move on by `stride`; a byte counts in the first window that holds it."""
    bits: dict[int, float] = {}
    context, start = min(context, size), 0
    while True:
        for i in range(1, context):
            bits.setdefault(start + i, 1.0 + i)
        if start + context >= size:
            break
        start = min(start + stride, size - context)
    assert sorted(bits) == list(range(1, size))
    return sum(bits.values()) / (size - 1)


@pytest.mark.parametrize(
    ("size", "context", "stride"),
    [(40, 10, 5), (41, 10, 9), (43, 10, 1), (7, 10, 5), (10, 10, 5), (2, 10, 5)],
)
def test_every_byte_counts_once(size: int, context: int, stride: int) -> None:
    stream = np.arange(size, dtype=np.uint8)
    score = bits_per_byte(Counting(stream), stream, context, stride)
    assert score.bytes == size - 1
    assert score.bits_per_byte == pytest.approx(expected_bits(size, context, stride), rel=1e-5)


def test_default_stride_is_half_the_context() -> None:
    assert bits_per_byte(Counting(TEXT[:30]), TEXT[:30], 8).stride == 4


@pytest.mark.parametrize("stride", [0, 8, -1])
def test_stride_is_checked(stride: int) -> None:
    with pytest.raises(MapformersError, match="stride must lie in"):
        bits_per_byte(Counting(TEXT), TEXT, 8, stride)


def model(attention: str) -> MapformerForCausalLM:
    config = MapformerConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, layers=[{"attention": attention}] * 2
    )
    return MapformerForCausalLM(config).eval()


@pytest.mark.parametrize(
    "attention", ["band(window=4)", "routing(clusters=2, window=4):1 + band(window=4):1", "full"]
)
def test_decoding_agrees_with_one_pass(attention: str) -> None:
    score = prefix_only(model(attention), TEXT, 60)
    assert score.method == "cache"
    assert score.agrees
    assert score.largest_difference < 1e-4
    forced = byte_losses(model(attention), torch.tensor(TEXT[:61].astype(np.int64))[None]).mean().item()
    assert score.teacher_forced == pytest.approx(forced / math.log(2), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*leak")
def test_a_leak_shows() -> None:
    leaky = model('routing(clusters=2, window=4, membership="paper", allow_selection_leak=True)')
    with torch.no_grad():
        for parameter in leaky.parameters():
            parameter.mul_(4)
    score = prefix_only(leaky, TEXT, 40)
    assert score.method == "prefixes"
    assert score.largest_difference > 1e-3


@pytest.mark.parametrize("positions", [0, 300])
def test_positions_are_checked(positions: int) -> None:
    with pytest.raises(MapformersError, match=r"--prefix-only must lie in 1\.\.299"):
        prefix_only(model("full"), TEXT, positions)


def test_generation_streams_what_it_returns_and_is_seeded(global_random_untouched: None) -> None:
    shown: list[str] = []
    one = generate_bytes(model("band(window=4)"), "def ", 30, temperature=1.0, seed=1, write=shown.append)
    assert len(one) == 30
    assert "".join(shown) == printable(one.decode("utf-8", "replace"))
    assert one == generate_bytes(model("band(window=4)"), "def ", 30, temperature=1.0, seed=1)
    assert one != generate_bytes(model("band(window=4)"), "def ", 30, temperature=1.0, seed=2)


def test_temperature_zero_is_greedy() -> None:
    one = model("band(window=4)")
    made = generate_bytes(one, "def ", 5, temperature=0)
    tokens = list(b"def ")
    for _ in range(5):
        with torch.no_grad():
            tokens.append(int(one(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    assert made == bytes(tokens[4:])
    assert len(generate_bytes(one, "", 3, temperature=0)) == 3


def test_characters_are_shown_when_complete() -> None:
    shown: list[str] = []
    streamer = ByteStreamer(shown.append)
    streamer.put(torch.tensor([[1, 2]]))
    for byte in "é".encode() + b"\xff" + b"\x1b" + b"\n" + "é".encode()[:1]:
        streamer.put(torch.tensor([byte]))
    assert shown == ["é", "\ufffd", "\ufffd", "\n"]
    streamer.end()
    assert shown[-1] == "\ufffd"


@pytest.mark.parametrize(("count", "temperature", "seed"), [(0, 1.0, 0), (1, -1.0, 0), (1, 1.0, -1)])
def test_generation_options_are_checked(count: int, temperature: float, seed: int) -> None:
    with pytest.raises(MapformersError, match="generate: --"):
        generate_bytes(model("full"), "a", count, temperature, seed)
