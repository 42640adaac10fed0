"""Hard-coded Gaussian attention: by hand, without queries and keys, as a density, decoding."""

import math

import pytest
import torch

import mapformers as mf
from tests.priors.distances import decodes_as_forward, drawn, matrix
from tests.tolerances import assert_close


def test_by_hand() -> None:
    """Heads look one token back and one ahead; causal heads one back and at themselves; then again."""
    expected = torch.tensor([[-2.0, -0.5, 0.0, -0.5, -2.0], [-4.5, -2.0, -0.5, 0.0, -0.5]])
    causal = matrix(mf.score("hard_gaussian", 3, 8, causal=True), 3, torch.arange(5))[0, :, 3]
    assert_close(causal, torch.stack([expected[0], expected[1], expected[0]]), "rounding")
    both = matrix(mf.score("hard_gaussian", 2, 8), 2, torch.arange(5))[0, :, 3]
    assert_close(
        both, torch.tensor([[-2.0, -0.5, 0.0, -0.5, -2.0], [-8.0, -4.5, -2.0, -0.5, 0.0]]), "rounding"
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mechanism", ["full", "band"])
def test_queries_and_keys_do_not_count(mechanism: str, causal: bool, generator: torch.Generator) -> None:
    q, k, v = drawn(2, 19, generator)
    term = mf.score("hard_gaussian(centres='-3,2', sigma=2.0)", 2, 8, causal=causal).double()
    i, j = torch.arange(19, dtype=torch.float64)[:, None], torch.arange(19, dtype=torch.float64)
    density = torch.stack([torch.exp(-((j - i - c) ** 2) / 8) for c in (-3, 2)])
    density = density.tril() if causal else density
    expected = density / density.sum(-1, keepdim=True) @ v
    pattern = mf.mechanism("full") if mechanism == "full" else mf.mechanism("band", window=18)
    found = mf.attend(pattern, q, k, v, causal=causal, score=term)
    assert_close(found, expected.expand_as(found), "parity")
    dq, dk = torch.autograd.grad(found.sum(), (q, k), allow_unused=True)
    assert dq is None or not dq.any()
    assert dk is None or not dk.any()


def test_inside_it_is_the_published_density() -> None:
    """Rows whose window lies inside the text: the density sums to one, to the sixth digit."""
    row = matrix(mf.score("hard_gaussian(centres='1')", 1, 8), 1, torch.arange(41))[0, 0, 20]
    published = (row.double()).exp() / math.sqrt(2 * math.pi)
    assert_close(row.softmax(-1), published.float(), "rounding")


def test_only_the_distance_counts() -> None:
    term = mf.score("hard_gaussian", 3, 8)
    positions = torch.tensor([0, 3, 4, 40, 41, 300])
    assert torch.equal(matrix(term, 3, positions + 1000), matrix(term, 3, positions))


def test_decode(generator: torch.Generator) -> None:
    step, whole = decodes_as_forward("band(window=9)", "hard_gaussian(sigma=3.0)", generator)
    assert_close(step, whole, "decode")


@pytest.mark.parametrize("options", ["sigma=0.0", "centres='a'", "centres='1,2,3'", "centres='1,,2'"])
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(mf.MapformersError, match=r"hard_gaussian: .*; "):
        mf.score(f"hard_gaussian({options})", 2, 8)


@pytest.mark.parametrize("text", ["full", "band(window=6)", "full:1 + band(window=6):1"])
def test_the_density_is_not_normalised(text: str, generator: torch.Generator) -> None:
    """Weights of the normal distribution over what is seen, as the published code takes them."""
    term = "hard_gaussian(centres='-1,0', sigma=1.5, normalise=false)"
    layer = mf.attention(text, 8, 2, causal=True, score=term).double()
    x = torch.randn(2, 15, 8, generator=generator, dtype=torch.float64)
    i, j = torch.arange(15, dtype=torch.float64)[:, None], torch.arange(15, dtype=torch.float64)
    density = [torch.exp(-((j - i - c) ** 2) / 4.5) / (1.5 * math.sqrt(2 * math.pi)) for c in (-1, 0)]
    weights = torch.stack(density).tril()
    if "band" in text:
        of_band = slice(1, None) if "full" in text else slice(None)
        weights[of_band] *= torch.ones(15, 15).triu(-6)
    _, _, v = layer.project(x, x)
    assert_close(layer(x), layer.merge(weights @ v), "rounding")
    state, outputs = layer.init_state(2), []
    for t in range(15):
        y, state = layer.step(x[:, t : t + 1], state)
        outputs.append(y)
    assert_close(torch.cat(outputs, 1), layer(x), "decode")


def test_interior_rows_are_nearly_normalised() -> None:
    """Whole numbers sample the density finely enough: both forms agree to 1e-6 away from the ends."""
    q = torch.zeros(1, 2, 30, 8, dtype=torch.float64)
    v = torch.randn(1, 2, 30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = mf.mechanism("full")
    both = [
        mf.attend(full, q, q, v, score=mf.score(f"hard_gaussian(normalise={word})", 2, 8))
        for word in ("true", "false")
    ]
    gap = (both[0] - both[1]).abs()
    assert float(gap[:, :, 8:-8].max()) < 1e-5 < 0.1 < float(gap.max())
