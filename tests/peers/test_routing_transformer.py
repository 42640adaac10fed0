"""What the installed package routing_transformer does under causal=True, by the same audit that ours passes.

The leak is not a slip in the package: the published membership, where every cluster takes its best tokens
of the whole sequence, lets later tokens decide which earlier ones are seen.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.audit import Report

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
VOCAB, LENGTH = 64, 128


@pytest.fixture(scope="module")
def package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "routing_transformer",
            reason="needs the package routing-transformer==1.6.1 (make full installs it)",
        )


def build(package: Any, local_heads: int) -> Callable[[Tensor], Tensor]:
    """A small language model after one training step, which its centroids need."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = package.RoutingTransformerLM(
            num_tokens=VOCAB,
            dim=32,
            heads=4,
            depth=1,
            max_seq_len=LENGTH,
            window_size=32,
            causal=True,
            n_local_attn_heads=local_heads,
        )
        ids = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        logits, auxiliary = model.train()(ids)
        (logits.sum() + auxiliary).backward()
    model.eval()
    return lambda x: model(x)[0]


def leaks(report: Report) -> list[float]:
    return [row.measured for row in report.rows if row.name.startswith("future") and not row.passed]


def test_its_routing_heads_leak_the_future(package: Any) -> None:
    report = mf.audit(build(package, 0), vocab=VOCAB, length=LENGTH)
    print(f"\n{report}")
    assert not report.passed
    assert len(leaks(report)) == 6, "every kind of input, every cut"
    assert max(leaks(report)) > 1e-2


def test_its_local_heads_do_not(package: Any) -> None:
    """The control: the same model, the same audit, no routing."""
    report = mf.audit(build(package, 4), vocab=VOCAB, length=LENGTH)
    assert not leaks(report), str(report)


def test_ours_does_not() -> None:
    layer = mf.attention("routing(clusters=4, window=32)", 32, 4, causal=True)
    report = mf.audit(layer, length=LENGTH)
    assert report.passed, str(report)
