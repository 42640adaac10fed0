"""Encoder-decoders: strict causality, decoding, beams, padding on any side, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import mapformers.hub  # noqa: F401  registers the classes
from mapformers import MapformersError
from mapformers.models.seq2seq import MapformerForSeq2SeqLM
from tests.tolerances import assert_close

from .tiny import config_of, tokens

PAD, START, END = 47, 48, 49
CROSS = (
    "full",
    "routing(clusters=3, window=2)",
    "linear",
    "performer(features=16)",
    "rfa(features=8)",
    "memory_compressed(stride=2)",
    "linformer(length=64, rank=4)",
)
ENCODER = [
    {"attention": "routing(clusters=3, window=4)"},
    {"attention": "clustered(clusters=4)", "rotary": False},
]


def model_of(cross: str = CROSS[1], **fields: Any) -> Any:
    layers = [
        {"attention": "band(window=4)", "cross": cross},
        {"attention": "routing(clusters=3, window=4)", "cross": cross},
    ]
    fields = {
        "layers": layers,
        "encoder_layers": ENCODER,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "decoder_start_token_id": START,
        **fields,
    }
    return MapformerForSeq2SeqLM(config_of(**fields)).double().eval()


def available(cross: str) -> bool:
    try:
        model_of(cross)
    except MapformersError as error:
        print(error)
        return False
    return True


@pytest.mark.parametrize("cross", CROSS)
def test_later_targets_do_not_matter(cross: str) -> None:
    model, source, target = model_of(cross), tokens(2, 11), tokens(2, 9, seed=1)
    other = target.clone()
    other[:, 5:] = tokens(2, 4, seed=2)
    before = model(input_ids=source, decoder_input_ids=target).logits
    after = model(input_ids=source, decoder_input_ids=other).logits
    assert_close(after[:, :5], before[:, :5], "rounding")
    assert not torch.allclose(after[:, 5:], before[:, 5:])
    assert not torch.allclose(model(tokens(2, 11, seed=3), decoder_input_ids=target).logits, before)


@pytest.mark.parametrize("cross", CROSS)
def test_step_by_step_as_at_once(cross: str) -> None:
    model, source, target = model_of(cross), tokens(2, 11), tokens(2, 9, seed=1)
    wanted = model(input_ids=source, decoder_input_ids=target).logits
    cache, made = None, []
    for i in range(9):
        out = model(
            input_ids=source, decoder_input_ids=target[:, i : i + 1], past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        made.append(out.logits)
    assert_close(torch.cat(made, 1), wanted, "decode")


@pytest.mark.parametrize("cross", CROSS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_either_side_does_not_matter(cross: str, side: str) -> None:
    model, source, target = model_of(cross), tokens(1, 7), tokens(1, 6, seed=1)
    wanted = model(input_ids=source, decoder_input_ids=target).logits

    def padded(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        fill, mask = torch.full((1, count), 3), torch.zeros(1, count, dtype=torch.long)
        parts, masks = ([fill, x], [mask, torch.ones_like(x)])
        if side == "right":
            parts, masks = parts[::-1], masks[::-1]
        return torch.cat(parts, 1), torch.cat(masks, 1)

    source, source_mask = padded(source, 4)
    target, target_mask = padded(target, 3)
    mate, mate_target = tokens(1, 11, seed=4), tokens(1, 9, seed=5)
    out = model(
        input_ids=torch.cat([source, mate]),
        attention_mask=torch.cat([source_mask, torch.ones_like(mate)]),
        decoder_input_ids=torch.cat([target, mate_target]),
        decoder_attention_mask=torch.cat([target_mask, torch.ones_like(mate_target)]),
    ).logits
    assert_close(out[:1][target_mask.bool()], wanted[0], "parity")
    alone = model(input_ids=mate, decoder_input_ids=mate_target).logits
    assert_close(out[1:], alone, "parity")


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_as_by_hand(beams: int) -> None:
    """Greedy: the best token of the whole forward each time. Beams: never a worse log-probability."""
    model, source = model_of(), tokens(2, 8)
    mask = torch.ones_like(source)
    mask[1, 5:] = 0
    made = model.generate(
        source, attention_mask=mask, max_new_tokens=6, num_beams=beams, do_sample=False, min_new_tokens=6
    )
    greedy = torch.full((2, 1), START)
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=greedy).logits[:, -1]
            logits[:, END] = -torch.inf
            greedy = torch.cat([greedy, logits.argmax(-1, keepdim=True)], 1)

    def score(rows: torch.Tensor) -> torch.Tensor:
        out = model(input_ids=source, attention_mask=mask, decoder_input_ids=rows[:, :-1])
        logits = out.logits.clone()
        logits[..., END] = -torch.inf
        return logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).sum((1, 2))

    if beams == 1:
        assert torch.equal(made, greedy)
    else:
        assert bool((score(made) >= score(greedy) - 1e-9).all())


def test_the_loss_and_the_shift() -> None:
    model, source = model_of().train(), tokens(2, 8)
    labels = tokens(2, 5, seed=1)
    labels[1, 3:] = -100
    shifted = torch.cat([torch.full((2, 1), START), labels[:, :-1]], 1)
    assert model.behind_start(labels).tolist() == shifted.masked_fill(shifted == -100, PAD).tolist()
    out = model(input_ids=source, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    assert_close(out.losses["task"], expected, "parity")
    commitment = out.losses["commitment"] * model.config.auxiliary_weights["commitment"]
    assert_close(out.loss, expected + commitment, "rounding")
    out.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None and "null_key" not in name]
    assert missing == []


def test_every_bit_comes_back(tmp_path: Path) -> None:
    model, source, target = model_of().float(), tokens(2, 8), tokens(2, 5, seed=1)
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.lm_head.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(again, MapformerForSeq2SeqLM)
    assert again.encoder.embed_tokens.weight is again.lm_head.weight
    one, two = (m(input_ids=source, decoder_input_ids=target).logits for m in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"encoder_layers": None}, "encoder_layers must be given"),
        ({"causal": False}, "causal be True"),
        ({"layers": [{"attention": "full"}]}, "cross attention"),
        ({"encoder_layers": []}, "encoder_layers must hold"),
        ({"encoder_layers": [{"attention": "bnd"}]}, "nearest: band"),
        ({"layers": [{"attention": "full", "cross": "clustered"}]}, "query by query, got clustered"),
        ({"layers": [{"attention": "full", "cross": "band"}]}, "query by query, got band"),
        ({"layers": [{"attention": "full", "cross": "routing(membership=random)"}]}, "membership"),
        ({"norm": "post"}, "norm must be pre"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(MapformersError, match=rule):
        model_of(**fields)


def test_a_decoder_needs_its_context() -> None:
    model = model_of()
    with pytest.raises(MapformersError, match="context must be given"):
        model.decoder(tokens(1, 4))
    with pytest.raises(MapformersError, match="decoder_input_ids or labels"):
        model(input_ids=tokens(1, 4))
