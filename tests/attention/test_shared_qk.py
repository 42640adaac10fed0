"""The projection shared_qk: one map for queries and keys, keys of one length."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.heads.shared_qk import of_one_length
from tests.contract import cases
from tests.tolerances import assert_close

N = 12


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return cases.draw((2, N, cases.DIM), generator)


def test_the_score_is_the_query_along_the_direction_of_the_key(x: Tensor) -> None:
    layer = mf.attention("full", cases.DIM, cases.HEADS, project="shared_qk").double()
    weight = layer.project.query_key.weight
    raw = (x @ weight.T).view(2, N, cases.HEADS, -1).transpose(1, 2)  # [B, H, N, D]
    v = layer.project.value(x).view(2, N, cases.HEADS, -1).transpose(1, 2)
    scores = raw @ (raw / raw.norm(dim=-1, keepdim=True)).transpose(-1, -2)
    got, expected = layer(x), layer.merge(scores.softmax(-1) @ v)
    assert (got - expected).abs().max() < 1e-5, "more than the 1e-6 of the mean square"
    assert (got - expected).abs().max() > 0


def test_keys_have_one_length(x: Tensor) -> None:
    q, k, _ = mf.attention("full", cases.DIM, cases.HEADS, project="shared_qk").double().project(x, x)
    rms = (q.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_close(k, q / rms, "rounding")
    assert k.square().mean(-1).sub(1).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zero_and_huge_rows_are_finite(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.0, 0.0], [1e30, -1e30], [1e-30, 0.0]], dtype=dtype).requires_grad_()
    found = of_one_length(rows)
    assert found.dtype == dtype
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.float().sum(), rows)
    assert gradient.isfinite().all()


def test_a_context_is_mapped_by_the_map_of_the_queries(x: Tensor, generator: torch.Generator) -> None:
    layer = mf.attention("full", cases.DIM, cases.HEADS, project="shared_qk").double()
    context = cases.draw((2, 5, cases.DIM), generator)
    k = layer.project(x, context)[1]
    assert_close(k, layer.project(context, context)[1], "rounding")
    assert layer(x, context=context).shape == x.shape


def test_it_has_two_maps_instead_of_three() -> None:
    shared, plain = (mf.attention("full", 32, 4, project=name) for name in ("shared_qk", "multi_head"))
    count = [sum(p.numel() for p in layer.project.parameters()) for layer in (shared, plain)]
    assert count == [2 * 32 * 32, 3 * 32 * 32]


@pytest.mark.parametrize("causal", [False, True])
def test_reformer_on_it_passes_the_audit(causal: bool, generator: torch.Generator) -> None:
    layer = mf.attention("reformer(buckets=4, window=5)", 32, 4, causal=causal, project="shared_qk").double()
    report = mf.audit(layer, causal=causal, length=24)
    assert report.passed, str(report)
