"""Bugs in the star and in ETC."""

from tests.mutation.mutant import Mutant

STAR = ("tests/blocks/test_star.py",)
ETC = ("tests/blocks/test_etc.py",)
BLOCKS = ("tests/contract/test_blocks.py",)
STAR_ETC_MUTANTS = (
    Mutant(
        "star forgets the embeddings",
        "blocks/star.py",
        "replace(carry, stream=relay, embedding=embedding)",
        "replace(carry, stream=relay)",
        STAR,
        "by_hand",
    ),
    Mutant(
        "the relay reads the old satellites",
        "blocks/star.py",
        "self._relay(relay, x, real)",
        "self._relay(relay, embedding, real)",
        STAR,
        "by_hand",
    ),
    Mutant(
        "a ring of two sees its neighbour twice",
        "blocks/star.py",
        " & (behind != before)",
        "",
        STAR,
        "nearest",
    ),
    Mutant(
        "the relay reads padding",
        "blocks/star.py",
        "F.pad(real, (1, 0), value=True)",
        "F.pad(torch.ones_like(real), (1, 0), value=True)",
        BLOCKS,
        "star and padding",
    ),
    Mutant(
        "etc measures distances by index",
        "blocks/etc_attention.py",
        "self.config.of_distance(self.positions[row, pairs.query] - self.positions[row, pairs.key])",
        "self.config.of_distance(pairs.query - pairs.key)",
        ETC,
        "positions",
    ),
    Mutant(
        "etc adds its biases outside the scaling",
        "blocks/etc_attention.py",
        "(content + self.bias[:, None].to(content.dtype)) * default_scale(q.shape[-1])",
        "content * default_scale(q.shape[-1]) + self.bias[:, None].to(content.dtype)",
        ETC,
        "by_hand",
    ),
    Mutant(
        "etc shows hidden pairs",
        "blocks/etc_attention.py",
        "Dense() if given is None else Dense(allowed=(labels >= 0)[:, None])",
        "Dense()",
        ETC,
        "sentences",
    ),
    Mutant(
        "global rows read padding",
        "blocks/etc_attention.py",
        'self._piece("g2l", asked, x, carry, padded)',
        'self._piece("g2l", asked, x, carry, Scope())',
        BLOCKS,
        "etc and padding",
    ),
)
