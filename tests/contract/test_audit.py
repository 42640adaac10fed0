"""mf.audit finds what it must find, in our layers and in anybody's."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mapformers as mf
from mapformers.audit import Report
from tests.contract import cases

DIM = 16


def failed(report: Report) -> set[str]:
    """The families of checks that failed: the word before the colon."""
    return {row.name.split(":")[0] for row in report.rows if not row.passed}


class Running(nn.Module):
    """A causal mean over a linear map: what a correct module of somebody else looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.utils.skip_init(nn.Linear, DIM, DIM, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(cases.draw((DIM, DIM), torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(x[..., :1]) if mask is None else mask.unsqueeze(-1).to(x.dtype)
        y = self.map(torch.where(real > 0, x, 0.0))
        return (y * real).cumsum(1) / real.cumsum(1).clamp(min=1)


@pytest.mark.parametrize("text", ["band(window=5)", "linear", "block_local(block=6)", *cases.MIXTURES[:1]])
def test_our_layers_pass(text: str) -> None:
    report = mf.audit(mf.attention(text, cases.DIM, cases.HEADS, causal=True), length=24)
    assert report.passed, str(report)
    names = {row.name.split(":")[0] for row in report.rows}
    assert names == {"future", "padding", "batch", "determinism", "state", "decode"}


@pytest.mark.parametrize("text", cases.ALL_BLOCKS)
def test_our_blocks_pass(text: str) -> None:
    causal = cases.block_supports(text, "causal")
    report = mf.audit(mf.block(text, cases.DIM, cases.HEADS, causal=causal), causal=causal, length=24)
    assert report.passed, str(report)


def test_the_published_routing_fails_by_selection_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaky = "routing(clusters=4, window=6, membership=paper, allow_selection_leak=true)"
        report = mf.audit(mf.attention(leaky, cases.DIM, cases.HEADS, causal=True))
    assert failed(report) == {"future"}
    by_name = {row.name: row for row in report.rows}
    assert by_name["future: gradient"].passed  # gradients do not see selection
    assert by_name["future: last token changed, random input"].measured > 0.01


def test_a_layer_that_is_not_causal_fails_as_causal() -> None:
    layer = mf.attention("band(window=5)", cases.DIM, cases.HEADS)
    assert failed(mf.audit(layer, length=16)) == {"future"}
    assert mf.audit(layer, causal=False, length=16).passed


def test_somebody_elses_module_passes() -> None:
    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        total, count = (0, 0) if state is None else state
        total, count = total + F.linear(x, module.map.weight.to(x.dtype)), count + 1
        return total / count, (total, count)

    module = Running()
    report = mf.audit(module, dim=DIM, mask="mask", decode=step, length=16)
    assert report.passed, str(report)
    assert {row.limit for row in report.rows} == {0.0, 1e-10}, "not in float64"


@pytest.mark.parametrize(
    ("family", "broken"),
    [
        ("future", lambda x, mask: x + x.mean(1, keepdim=True)),
        ("future", lambda x, mask: x + x.roll(-1, 1)),
        ("future", lambda x, mask: x * x.norm(dim=-1).argmax(1).view(-1, 1, 1).to(x.dtype)),
        ("padding", lambda x, mask: x.cumsum(1)),
        ("batch", lambda x, mask: x - x.mean(0, keepdim=True)),
        ("determinism", lambda x, mask: x + torch.rand_like(x[:, :1])),
    ],
)
def test_broken_functions_fail_where_they_are_broken(
    family: str, broken: Callable[[Tensor, Tensor], Tensor]
) -> None:
    report = mf.audit(lambda x, mask=None: broken(x, mask), dim=DIM, mask="mask", length=16)
    assert family in failed(report), str(report)


def test_a_wrong_decode_step_fails() -> None:
    report = mf.audit(lambda x: x.cumsum(1), dim=DIM, decode=lambda x, state: (x, None), length=8)
    assert failed(report) == {"decode"}


def test_a_module_that_learns_in_eval_fails() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return x

    module = Counting()
    assert failed(mf.audit(module, dim=DIM, length=8)) == {"state"}
    assert module.seen == 0, "the user's module was run"


def test_token_models(generator: torch.Generator) -> None:
    table = cases.draw((11, DIM), generator).float()
    honest = mf.audit(lambda ids: table[ids].cumsum(1) @ table.T, vocab=11, length=16)
    leaky = mf.audit(lambda ids: (table[ids] + table[ids[:, -1:]]) @ table.T, vocab=11, length=16)
    assert honest.passed, str(honest)
    assert failed(leaky) == {"future"}
    assert {row.limit for row in honest.rows} == {1e-5}, "not in float32"


@pytest.mark.filterwarnings("ignore")
def test_the_users_module_and_randomness_stay_as_they_are() -> None:
    module = mf.attention("routing(clusters=4, window=6)", cases.DIM, cases.HEADS, causal=True)
    state, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    first, second = mf.audit(module, length=8), mf.audit(module, length=8)
    assert first == second
    assert module.training
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.dtype == state[name].dtype


def test_reports_are_readable() -> None:
    report = mf.audit(Running(), dim=DIM, mask="mask", length=8)
    assert max(map(len, str(report).splitlines())) <= 80
    assert "audit of Running: passed" in str(report)
    plain = report.as_dict()
    assert plain["passed"] is True
    assert plain["rows"][0].keys() == {"name", "passed", "measured", "limit", "meaning"}


def test_bad_calls_are_refused_in_one_line() -> None:
    for arguments, message in (
        ({}, "audit: dim must be given"),
        ({"dim": DIM + 1}, "audit: subject cannot be called"),
        ({"dim": DIM, "length": 1}, "audit: length must be 4 or more"),
        ({"dim": DIM, "batch": 1}, "audit: batch must be 2 or more"),
    ):
        with pytest.raises(mf.MapformersError, match=message):
            mf.audit(Running(), **arguments)
    with pytest.raises(mf.MapformersError, match="audit: output must keep batch and tokens"):
        mf.audit(lambda x: x[:, 1:], dim=DIM)
