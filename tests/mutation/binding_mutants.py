"""Bugs in score terms that bind to a call, in what they carry, and in the losses of heads."""

from tests.mutation.mutant import Mutant

PRODUCT = "tests/contract/test_product.py"
DECODED, LATER = f"{PRODUCT}::test_decoding_and_padding", f"{PRODUCT}::test_no_later_token_counts"


def of(name: str) -> tuple[str, ...]:
    """The tests of a term."""
    return (f"tests/priors/test_{name}.py",)


BINDING_MUTANTS = (
    Mutant(
        "relative keys of the other side",
        "priors/shaw.py",
        "(pairs.key - pairs.query)",
        "(pairs.query - pairs.key)",
        of("shaw"),
    ),
    Mutant(
        "localness counts padding",
        "priors/seen.py",
        "real.to(counts.dtype))",
        "torch.ones_like(counts))",
        of("localness"),
    ),
    Mutant(
        "localness forgets earlier keys in decoding",
        "priors/seen.py",
        "sums, counts = sums + self.total, counts + self.count",
        "sums, counts = sums, counts",
        (DECODED,),
        "localness",
    ),
    Mutant(
        "both factors of a synthesizer modulo",
        "priors/synthesizer.py",
        "pairs.key // rank",
        "pairs.key % parts[1].shape[-1]",
        of("synthesizer"),
    ),
    Mutant(
        "concatenated scores are scaled by the wider root",
        "priors/realformer.py",
        "gain = math.sqrt(layers)",
        "gain = 1",
        of("realformer"),
    ),
    Mutant(
        "the causal convolution reads the row behind",
        "priors/evolving.py",
        "F.pad(close, (1, 1, 1, 0 if self.causal else 1))",
        "F.pad(close, (1, 1, 0, 1))",
        (LATER,),
        "evolving",
    ),
    Mutant(
        "evolving convolves what may not be seen",
        "priors/evolving.py",
        "shown = scores.masked_fill(~(seen & real_rows[:, None, :, None]), 0.0)",
        "shown = scores",
        of("evolving"),
    ),
    Mutant(
        "neighbouring documents meet in the convolution",
        "priors/evolving.py",
        "place = is_real.long().cumsum(1) - 1 + changes.long().cumsum(1)",
        "place = is_real.long().cumsum(1) - 1",
        of("evolving"),
    ),
    Mutant(
        "talking heads mix the other way round",
        "heads/talking_heads.py",
        '"bngh,bgnd->bhngd"',
        '"bnhg,bgnd->bhngd"',
        ("tests/heads/test_talking_heads.py",),
    ),
    Mutant(
        "a plan's own keys are scored by one head only",
        "heads/talking_heads.py",
        "own_keys=(*call.own_keys, beside_others)",
        "own_keys=(*call.own_keys, lambda keys, first: keys.repeat(1, 1, 1, heads))",
        ("tests/heads/test_talking_heads.py",),
    ),
    Mutant(
        "a content bias is scaled twice",
        "heads/collaborative.py",
        "math.sqrt(self.key_dim * heads / self.width)",
        "math.sqrt(heads)",
        ("tests/heads/test_projections.py",),
        "content_bias",
    ),
    Mutant(
        "groups of heads are dealt out in turn",
        "attention/convert.py",
        "weight.unflatten(0, (kv_heads, -1, layer.sizes.head_dim))",
        "weight.unflatten(0, (-1, kv_heads, layer.sizes.head_dim)).transpose(0, 1)",
        ("tests/heads/test_projections.py",),
        "neighbouring",
    ),
    Mutant(
        "agreement decides between heads instead of parts",
        "heads/capsule.py",
        "share = agreement.softmax(-1)",
        "share = agreement.softmax(-2)",
        ("tests/heads/test_capsule.py",),
    ),
    Mutant(
        "reused weights go with the values of the first layer",
        "blocks/lazy_attention.py",
        "owner.run_call(replace(call, v=self._values(x)))",
        "owner.run_call(call)",
        ("tests/blocks/test_lazyformer.py",),
    ),
    Mutant(
        "rings of a lazy block are written before they are read",
        "blocks/lazy_attention.py",
        "ring.keys = ring.keys.clone()",
        "pass",
        ("tests/blocks/test_lazyformer.py",),
    ),
    Mutant(
        "the mean of the average block forgets the token itself",
        "priors/seen.py",
        "sums, counts = weighted.cumsum(2), ones.cumsum(2)",
        "sums, counts = weighted.cumsum(2) - weighted, ones.cumsum(2)",
        ("tests/blocks/test_average.py",),
    ),
    Mutant(
        "a span is cut one key short",
        "kernels/fit.py",
        "before = reach + 1 if plan.before is None else min(plan.before, reach + 1)",
        "before = reach if plan.before is None else min(plan.before, reach)",
        of("multi_scale"),
    ),
    Mutant(
        "products of weights with a scale of single heads",
        "heads/disagreement.py",
        "q = q * 2**0.5",
        "q = q * 1",
        ("tests/heads/test_disagreement.py",),
    ),
    Mutant(
        "guided squares count a plan's own keys",
        "heads/guided.py",
        "heads.log_sums(doubled, own_keys=False)",
        "heads.log_sums(doubled)",
        ("tests/heads/test_guided.py",),
    ),
)
