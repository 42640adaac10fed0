"""Language models whose layers have priors, head schemes and losses: cache, gradients, saving, losses."""

from pathlib import Path

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.hub import MapformerConfig, MapformerForCausalLM
from tests.tolerances import assert_close

LAYERS = (
    {"attention": "full", "score": "realformer + talking_heads", "loss": "disagreement + guided"},
    {"attention": "band(window=8)", "score": "realformer + adaptive_span(limit=16, ramp=4, initial=0.5)"},
    {"block": "lazyformer(attention='routing(clusters=3, window=6)')"},
    {"attention": "full", "score": "evolving", "project": "multi_query", "merge": "capsule"},
    {"attention": "full", "score": "evolving", "project": "collaborative", "rotary": False},
    {"block": "average"},
)


def model() -> MapformerForCausalLM:
    config = MapformerConfig(
        vocab_size=40,
        hidden_size=32,
        num_attention_heads=4,
        layers=[dict(layer, rotary=layer.get("rotary", "block" not in layer)) for layer in LAYERS],
        causal=True,
    )
    return MapformerForCausalLM(config).double()


def ids(n: int = 23) -> torch.Tensor:
    return torch.randint(0, 40, (2, n), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_cache_changes_nothing() -> None:
    made = model().eval()
    whole = made(ids()).logits
    first = made(ids()[:, :15], use_cache=True)
    cache, logits = first.past_key_values, [first.logits]
    for t in range(15, 23):
        out = made(ids()[:, t : t + 1], past_key_values=cache)
        cache = out.past_key_values
        logits.append(out.logits)
    assert_close(torch.cat(logits, 1), whole, "decode")


def test_every_parameter_learns_and_losses_are_weighted_in_one_place(tmp_path: Path) -> None:
    made = model().train()
    out = made(ids(), labels=ids())
    assert set(out.losses) >= {"next_token", "disagreement_output", "guided", "span"}
    weights = made.config.auxiliary_weights
    total = out.losses["next_token"]
    for name, loss in out.losses.items():
        total = total + weights.get(name, 0.0) * loss
    assert_close(out.loss, total, "rounding")
    out.loss.backward()
    still = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert still == ["model.layers.3.block.attention.score.weight"], "the lowest scores evolve from none"
    made.save_pretrained(tmp_path)
    again = MapformerForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_close(again(ids()).logits, made.eval()(ids()).logits, "rounding")


@pytest.mark.slow
def test_losses_of_parts_average_to_that_of_the_batch() -> None:
    """What gradient accumulation relies on: rows of equal length weigh the same in any step."""
    made = model().train()
    whole = made(ids(), labels=ids()).losses
    parts = [made(ids()[i : i + 1], labels=ids()[i : i + 1]).losses for i in range(2)]
    for name in ("disagreement_output", "guided", "span"):
        assert_close(sum(part[name] for part in parts) / 2, whole[name], "rounding", name)


@pytest.mark.slow
def test_activation_checkpointing_carries_scores() -> None:
    plain, saved = model().train(), model().train()
    saved.activation_checkpointing_enable()
    for made in (plain, saved):
        made(ids(), labels=ids()).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert_close(b.grad, a.grad, "gradient", name)


def test_blocks_take_no_ports() -> None:
    with pytest.raises(MapformersError, match="go with an attention, got a block"):
        MapformerConfig(layers=[{"block": "average", "score": "alibi"}], vocab_size=8, hidden_size=32)
