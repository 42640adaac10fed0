"""PerceiverForMaskedLM against the one of transformers, with its weights."""

import torch
from transformers import PerceiverConfig as TheirConfig
from transformers import PerceiverForMaskedLM as TheirModel

from mapformers.models.perceiver.config import PerceiverConfig
from mapformers.models.perceiver.model import PerceiverForMaskedLM
from tests.models.perceiver.tiny import ids

READ = {
    "attention.self.layernorm1": "query_norm",
    "attention.self.layernorm2": "context_norm",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "layernorm": "feed_norm",
    "mlp.dense1": "feed_forward.inner",
    "mlp.dense2": "feed_forward.outer",
}


def renamed(name: str) -> str:
    """A name of theirs as one of ours."""
    whole = {
        "perceiver.input_preprocessor.embeddings.weight": "input.embed.weight",
        "perceiver.input_preprocessor.position_embeddings.weight": "input.positions",
        "perceiver.embeddings.latents": "encoder.latents",
        "perceiver.decoder.output_position_encodings.position_embeddings": "decoder.queries.rows",
        "perceiver.decoder.decoding_cross_attention.": "decoder.read.",
        "perceiver.encoder.cross_attention.": "encoder.reads.0.",
        "embedding_decoder.bias": "bias",
    }
    for theirs, ours in whole.items():
        name = name.replace(theirs, ours)
    name = name.replace("perceiver.encoder.self_attends.", "encoder.blocks.0.")
    if name.startswith("encoder.blocks.0."):
        number, rest = name.removeprefix("encoder.blocks.0.").split(".", 1)
        name = f"encoder.blocks.0.{number}.layer.{rest}"
    for theirs, ours in READ.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name


def test_the_same_logits_with_the_same_weights() -> None:
    torch_state = torch.random.get_rng_state()
    theirs = TheirModel(
        TheirConfig(
            num_latents=6,
            d_latents=40,
            d_model=24,
            num_blocks=1,
            num_self_attends_per_block=3,
            num_self_attention_heads=4,
            num_cross_attention_heads=8,
            qk_channels=32,
            v_channels=40,
            vocab_size=30,
            max_position_embeddings=20,
        )
    ).eval()
    torch.random.set_rng_state(torch_state)
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases too: zeros would hide a swap
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    ours = PerceiverForMaskedLM(
        PerceiverConfig(
            input={"kind": "text", "vocab_size": 30, "length": 20, "channels": 24},
            output={"kind": "array", "rows": 20, "width": 24, "heads": 8, "qk": 8 * 32, "v": 24},
            latents=6,
            latent_size=40,
            latent_heads=4,
            read_heads=8,
            blocks=1,
            depth=3,
            read_qk=32,
            read_v=40,
            latent_qk=32,
            latent_v=40,
            norm_eps=1e-12,
        )
    ).eval()
    held = {renamed(name): x for name, x in theirs.state_dict().items()}
    ours.load_state_dict(held)
    tokens = ids(3, 20)
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 15:] = 0
    with torch.no_grad():
        wanted = theirs(tokens, attention_mask=mask).logits
        torch.testing.assert_close(ours(tokens, attention_mask=mask).logits, wanted, rtol=1e-4, atol=1e-4)
