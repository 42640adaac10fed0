"""States, seeds and copies: what is saved comes back bit for bit; nothing draws from shared randomness."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import mapformers as mf
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.tolerances import assert_close

DIRECTED = [(text, True in cases.directions_of(text)) for text in (*cases.ALL, *cases.MIXTURES)]


def trained(text: str, causal: bool, steps: int = 2, seed: int = 0) -> nn.Module:
    """A float32 layer after some steps of gradient descent and updates of the centroids."""
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal, seed=seed)
    for step in range(steps):
        x = cases.draw((2, 24, cases.DIM), torch.Generator().manual_seed(step)).float()
        result = layer.attend(x)
        (result.output.square().mean() + sum(result.losses.values())).backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        layer.update_centroids()
    return layer.eval()


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return cases.draw((2, 24, cases.DIM), generator).float()


@pytest.mark.parametrize(("text", "causal"), DIRECTED)
def test_the_state_dict_comes_back_bit_for_bit(
    text: str, causal: bool, x: torch.Tensor, tmp_path: Path
) -> None:
    layer = trained(text, causal)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    again = mf.attention(text, cases.DIM, cases.HEADS, causal=causal, seed=5).eval()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert torch.equal(layer(x), again(x))


@pytest.mark.parametrize(("text", "causal"), DIRECTED)
def test_a_copy_is_equal_and_independent(text: str, causal: bool, x: torch.Tensor) -> None:
    layer = trained(text, causal)
    before = layer(x)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize(("text", "causal"), DIRECTED)
def test_same_seed_same_result_other_seed_another(text: str, causal: bool, x: torch.Tensor) -> None:
    assert torch.equal(trained(text, causal)(x), trained(text, causal)(x))
    assert not torch.equal(trained(text, causal)(x), trained(text, causal, seed=1)(x))


@pytest.fixture
def untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"


@pytest.mark.parametrize("text", [*cases.ALL, *cases.MIXTURES])
def test_nothing_uses_the_global_random_state(text: str, untouched: None, x: torch.Tensor) -> None:
    causal = True in cases.directions_of(text)
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal)
    layer(x).sum().backward()
    layer.update_centroids()
    if causal and cases.supports(text, "decode"):
        state = layer.init_state(2)
        for t in range(3):
            _, state = layer.step(x[:, t : t + 1], state)
    layer.telemetry()


@pytest.mark.parametrize("text", cases.ALL_BLOCKS)
def test_blocks_do_not_either(text: str, untouched: None, x: torch.Tensor) -> None:
    causal = not cases.block_supports(text, "bidirectional")
    block = mf.block(text, cases.DIM, cases.HEADS, causal=causal)
    block(x, Carry())[0].sum().backward()
    block.update_centroids()


@pytest.mark.parametrize(("text", "causal"), DIRECTED)
def test_a_forward_changes_no_buffer_and_no_parameter(text: str, causal: bool, x: torch.Tensor) -> None:
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal)
    before = copy.deepcopy(layer.state_dict())
    for training in (True, False):
        layer.train(training)(x)
    moving = "routing" in text or "informer(factor" in text  # by what the forward in training observed
    layer.eval().update_centroids() if not moving else None
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("text", "causal"), DIRECTED)
def test_autocast_to_bfloat16(text: str, causal: bool, x: torch.Tensor) -> None:
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    assert all(b.dtype != torch.bfloat16 for b in layer.buffers())
    if not cases.by_content(text):  # narrow queries may choose other clusters
        assert_close(y, layer.eval()(x).to(y.dtype), "gradient", text)


@pytest.mark.parametrize(("text", "causal"), DIRECTED)
def test_a_bfloat16_layer_runs_forward_backward_and_decodes(text: str, causal: bool, x: torch.Tensor) -> None:
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal).bfloat16()
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    if causal and cases.supports(text, "decode"):
        step, _ = layer.step(x[:, :5].bfloat16(), layer.init_state(2))
        assert step.isfinite().all()


@pytest.mark.slow
@pytest.mark.clean_memory
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch's own, while tracing
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # likewise
@pytest.mark.parametrize("text", [texts[0] for texts in cases.SPECS.values()])
def test_torch_compile(text: str, x: torch.Tensor) -> None:
    causal = True in cases.directions_of(text)
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal).eval()
    expected = layer(x)
    assert_close(torch.compile(layer, backend="aot_eager")(x), expected, "parity", text)
