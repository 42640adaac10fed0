"""Informer as a model: the published sizes, padding, causality of nothing but time, ProbSparse = full."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mapformers import MapformersError
from mapformers.models.forecasting import MapformerForForecasting
from tests.tolerances import assert_close

from .tiny import config_of

SERIES = {
    "kind": "series",
    "channels": 3,
    "outputs": 3,
    "context": 16,
    "known": 6,
    "horizon": 5,
    "features": 2,
}


def model_of(attention: str = "informer(factor=2)", **fields: Any) -> Any:
    fields = {
        "input": SERIES,
        "encoder_layers": [{"attention": attention}] * 2,
        "layers": [{"attention": "full", "cross": "full"}],
        "rotary": False,
        **fields,
    }
    return MapformerForForecasting(config_of(**fields)).double().eval()


def history(batch: int = 2, steps: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, steps, 3, generator=generator, dtype=torch.float64)
    return values, torch.rand(batch, steps + 5, 2, generator=generator, dtype=torch.float64) - 0.5


def test_a_forecast_and_its_loss() -> None:
    model, (values, features) = model_of(), history()
    labels = torch.ones(2, 5, 3, dtype=torch.float64)
    out = model(values, features, labels=labels)
    assert out.logits.shape == (2, 5, 3)
    assert_close(out.loss, F.mse_loss(out.logits, labels), "rounding")
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_large_factor_is_full_attention() -> None:
    values, features = history()
    sparse, full = model_of("informer(factor=100)"), model_of("full")
    full.load_state_dict(sparse.state_dict(), strict=False)
    difference = (sparse(values, features).logits - full(values, features).logits).abs().max()
    assert float(difference.detach()) < 1e-9


@pytest.mark.parametrize("attention", ["full", "routing(clusters=2, window=4)"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_shorter_history_may_be_padded_on_any_side(attention: str, side: str) -> None:
    model, (values, features) = model_of(attention), history(1, 11)
    wanted = model(values, features).logits
    rubbish = torch.full((1, 5, 3), 7.0, dtype=torch.float64)
    mask = torch.ones(1, 11, dtype=torch.long)
    past, future = features[:, :11], features[:, 11:]
    empty, away = torch.full((1, 5, 2), 9.0, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.long)
    if side == "left":
        padded, times, mask = (
            torch.cat(pair, 1) for pair in ((rubbish, values), (empty, past), (away, mask))
        )
    else:
        padded, times, mask = (
            torch.cat(pair, 1) for pair in ((values, rubbish), (past, empty), (mask, away))
        )
    mates, mate_features = history(1, 16, seed=3)
    out = model(
        torch.cat([padded, mates]),
        torch.cat([torch.cat([times, future], 1), mate_features]),
        torch.cat([mask, torch.ones(1, 16, dtype=torch.long)]),
    ).logits
    assert_close(out[:1], wanted, "parity")
    assert_close(out[1:], model(mates, mate_features).logits, "parity")


def test_the_future_knows_its_time() -> None:
    model, (values, features) = model_of(), history()
    other = features.clone()
    other[:, -1] += 0.3
    assert not torch.allclose(model(values, features).logits, model(values, other).logits)


def test_without_distilling_and_without_features() -> None:
    plain = model_of(input={**SERIES, "distil": False, "features": 0})
    assert len(plain.distilling) == 0
    assert plain(history()[0]).logits.shape == (2, 5, 3)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    model, (values, features) = model_of("full").float(), history()
    model.save_pretrained(tmp_path)
    again = MapformerForForecasting.from_pretrained(tmp_path)
    values, features = values.float(), features.float()
    assert torch.equal(again(values, features).logits, model(values, features).logits)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"input": None}, "kind series"),
        ({"encoder_layers": None}, "encoder_layers"),
        ({"layers": [{"attention": "full"}]}, "cross"),
        ({"input": {**SERIES, "horizn": 3}}, "horizon"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(MapformersError, match=rule):
        model_of(**fields)


def test_bad_inputs_are_named() -> None:
    model, (values, features) = model_of(), history()
    for given in ((values[..., :2], features), (torch.cat([values, values], 1), features)):
        with pytest.raises(MapformersError, match="values must have shape"):
            model(*given)
    for wrong in (None, features[:, :-1]):
        with pytest.raises(MapformersError, match="features must have shape"):
            model(values, wrong)
    with pytest.raises(MapformersError, match="attention_mask must have shape"):
        model(values, features, torch.zeros(2, 3))
