"""Bugs that somebody could write, each as one replacement in the source, and the tests that must catch it."""

from tests.mutation.binding_mutants import BINDING_MUTANTS
from tests.mutation.clustered_mutants import CLUSTERED_MUTANTS
from tests.mutation.compound_mutants import COMPOUND_MUTANTS
from tests.mutation.delta_mutants import DELTA_MUTANTS
from tests.mutation.distance_mutants import DISTANCE_MUTANTS
from tests.mutation.image_tree_mutants import IMAGE_TREE_MUTANTS
from tests.mutation.informer_mutants import INFORMER_MUTANTS
from tests.mutation.kmeans_mutants import KMEANS_MUTANTS
from tests.mutation.linear_mutants import LINEAR_MUTANTS
from tests.mutation.low_rank_mutants import LOW_RANK_MUTANTS
from tests.mutation.moba_mutants import MOBA_MUTANTS
from tests.mutation.mutant import Mutant
from tests.mutation.native_mutants import NATIVE_MUTANTS
from tests.mutation.position_mutants import POSITION_MUTANTS
from tests.mutation.reformer_mutants import REFORMER_MUTANTS
from tests.mutation.star_etc_mutants import STAR_ETC_MUTANTS

CONTRACT = "tests/contract/"


def suite(path: str) -> tuple[str, ...]:
    """A file of the contract suite, or a test in it."""
    return (f"{CONTRACT}test_{path}",)


ATTENTION_MUTANTS = (
    Mutant(
        "window of band one too small",
        "mechanisms/sparse/band.py",
        "before=self.config.window + 1,",
        "before=max(1, self.config.window),",
        suite("parity.py::test_plain_at_every_length"),
        "band",
    ),
    Mutant(
        "band sees one key ahead of what it may",
        "kernels/windows.py",
        "(here + plan.after - plan.skip).clamp(max=m)",
        "(here + plan.after - plan.skip + 1).clamp(max=m)",
        suite("causality.py::test_attend_ignores_the_future"),
        "band",
    ),
    Mutant(
        "ordered ranges look one key ahead",
        "kernels/windows.py",
        "here = torch.searchsorted(key_sorted, query_sorted, right=True)",
        "here = 1 + torch.searchsorted(key_sorted, query_sorted, right=True)",
        suite("causality.py"),
        "routing",
    ),
    Mutant(
        "mask the wrong way round",
        "kernels/windows.py",
        "key_outside | ~scope.key_is_real",
        "key_outside | scope.key_is_real",
        suite("padding.py"),
        "band",
    ),
    Mutant(
        "padding dropped in the scope, where kernel and twin agree",
        "core/scope.py",
        "            seen = seen & self.key_is_real[:, None, None, :]",
        "            pass",
        suite("padding.py"),
        "full",
    ),
    Mutant(
        "scale 1/sqrt(D) missing",
        "kernels/ranges.py",
        "q * default_scale(dim)",
        "q",
        suite("parity.py::test_plain_at_every_length"),
        "band",
    ),
    Mutant(
        "cost of band without its border",
        "mechanisms/sparse/band.py",
        "n * (w + 1) - w * (w + 1) / 2 if causal",
        "n * (w + 1) if causal",
        suite("cost.py"),
        "band",
    ),
    Mutant(
        "cost of linear without the denominators",
        "mechanisms/linear/linear.py",
        "4.0 * n * dim * (dim + 1)",
        "4.0 * n * dim * dim",
        suite("cost.py"),
        "linear",
    ),
    Mutant(
        "clusters chosen in competition with the whole sequence",
        "mechanisms/content/membership.py",
        "chosen = self.kmeans.best(x, count)",
        "chosen = self.kmeans.best(x / x.detach().amax(2, keepdim=True), count)",
        suite("causality.py::test_attend_ignores_the_future"),
        "routing",
    ),
    Mutant(
        "ties of clusters go to the last",
        "kernels/nearest.py",
        "chosen = [scores.argmax(-1, keepdim=True)]",
        "chosen = [scores.shape[-1] - 1 - scores.flip(-1).argmax(-1, keepdim=True)]",
        suite("parity.py::test_ties_go_the_same_way"),
        "routing",
    ),
    Mutant(
        "parts merged without their weights",
        "core/attended.py",
        "weights = [(x - top).exp() for x in masses]",
        "weights = [(x - top).isfinite().to(top.dtype) for x in masses]",
        ("tests/kernels/test_plans.py",),
        "merge",
    ),
    Mutant(
        "null key dropped",
        "mechanisms/content/routing.py",
        "return Union((windows, Dense(keys=self.null_key[None, :, None])))",
        "return Union((windows,))",
        suite("parity.py::test_plain_at_every_length"),
        "routing",
    ),
    Mutant(
        "gate dropped",
        "mechanisms/content/routing.py",
        "log_weight=member.log_weight(q, scope) if self.config.gate else None",
        "log_weight=None",
        suite("options.py"),
        "gate",
    ),
    Mutant(
        "first members of a cluster instead of the last",
        "kernels/windows.py",
        "torch.maximum(first, here - plan.before)",
        "torch.maximum(first, torch.minimum(first, here - plan.before))",
        suite("parity.py::test_plain_at_every_length"),
        "routing",
    ),
    Mutant(
        "skipped keys are seen",
        "kernels/windows.py",
        "torch.maximum(start, here - plan.skip)",
        "torch.maximum(start, here)",
        ("tests/kernels/test_windows.py",),
    ),
    Mutant(
        "hidden keys are seen",
        "kernels/windows.py",
        "return ranges if plan.key_is_seen is None else",
        "return ranges if True else",
        ("tests/kernels/test_windows.py",),
    ),
    Mutant(
        "rotary before routing",
        "attention/multi_head.py",
        "                plan = mechanism.plan(q, k, scope)\n",
        "                at = rotation(scope.query_positions(q.shape[2], q.device), q.shape[-1], q.dtype)\n"
        "                plan = mechanism.plan(rotate(q, at), rotate(k, at), scope)\n",
        ("tests/attention/test_multi_head.py",),
        "rotation",
    ),
    Mutant(
        "rotary by index instead of true position",
        "attention/multi_head.py",
        "turn = self._rotation(scope.query_positions(x.shape[1], x.device), x.dtype)",
        "turn = self._rotation(torch.arange(x.shape[1])[None], x.dtype)",
        suite("padding.py::test_amount_of_left_padding_does_not_matter"),
        "band",
    ),
    Mutant(
        "ring reads one place too many",
        "attention/ring.py",
        "valid = ((places < filled.unsqueeze(-1))",
        "valid = ((places <= filled.unsqueeze(-1))",
        suite("decode.py::test_steps_equal_the_parallel_form"),
        "band",
    ),
    Mutant(
        "ring not emptied for the next segment",
        "attention/ring.py",
        "count = torch.where(owner == self.owner, self.count, 0)",
        "count = self.count",
        suite("decode.py::test_steps_equal_the_parallel_form"),
        "block_local",
    ),
    Mutant(
        "ring in the wrong order for several tokens",
        "attention/ring.py",
        "torch.where(self.count > window, self.count % window, 0)",
        "torch.zeros_like(self.count)",
        suite("decode.py::test_steps_equal_the_parallel_form"),
        "band",
    ),
    Mutant(
        "ring keeps padding",
        "attention/ring.py",
        "segment = segment.masked_fill(~new.is_real[:, None, :, None], -1).flatten(2)",
        "segment = segment.flatten(2)",
        suite("decode.py::test_steps_equal_the_parallel_form"),
        "band",
    ),
    Mutant(
        "beams not reordered",
        "attention/ring.py",
        'for name in (*PER_PLACE, "owner", "count"):',
        'for name in (*PER_PLACE, "owner"):',
        suite("decode.py::test_beams_can_be_reordered"),
        "band",
    ),
    Mutant(
        "cache of full attention forgets padding",
        "attention/state.py",
        "key_is_real=self.is_real.held(),",
        "key_is_real=None,",
        suite("decode.py::test_steps_equal_the_parallel_form"),
        "full",
    ),
    Mutant(
        "state counts padding",
        "attention/multi_head.py",
        "state.length + is_real.sum(1), parts",
        "state.length + n, parts",
        suite("decode.py"),
        "band",
    ),
    Mutant(
        "heads of a group interleaved",
        "kernels/softmax.py",
        "x.repeat_interleave(heads // x.shape[1], dim=1)",
        "x.repeat(1, heads // x.shape[1], 1, 1)",
        suite("parity.py::test_grouped_key_value_heads"),
        "band",
    ),
    Mutant(
        "documents ignored",
        "kernels/windows.py",
        "    if scope.segments is not None and documents is not None:",
        "    if False:",
        suite("documents.py"),
        "band",
    ),
    Mutant(
        "positions run on through documents",
        "core/scope.py",
        "positions = ranks = ranks_among_real(real, segments)",
        "positions = ranks = ranks_among_real(real)",
        suite("documents.py::test_packed_documents_equal_the_documents_alone"),
        "block_local",
    ),
    Mutant(
        "positions count padding",
        "core/scope.py",
        "positions = ranks = ranks_among_real(real, segments)",
        "positions = torch.arange(real.shape[1]).expand(real.shape)",
        suite("padding.py"),
        "block_local",
    ),
    Mutant(
        "triangle inside a chunk without its diagonal",
        "kernels/scan_tile.py",
        "return product.tril_() if self.share",
        "return product.tril_(-1) if self.share",
        suite("parity.py::test_plain_at_every_length"),
        "linear",
    ),
    Mutant(
        "chunk adds its own sums too",
        "kernels/scan_tile.py",
        "y = self.a @ upto[:, :-1].mT",
        "y = self.a @ upto[:, 1:].mT",
        suite("causality.py"),
        "linear",
    ),
    Mutant(
        "denominator of linear off",
        "kernels/features.py",
        "    output = y[..., :-1] / total.unsqueeze(-1)",
        "    output = y[..., :-1] / (total + 1e-6).unsqueeze(-1)",
        suite("parity.py::test_plain_at_every_length"),
        "linear",
    ),
    Mutant(
        "later blocks of queries see as little as the first",
        "kernels/dense.py",
        "query_start=scope.query_start + rows.start,",
        "query_start=scope.query_start,",
        ("tests/kernels/test_plans.py",),
        "blocks",
    ),
    Mutant(
        "linformer compresses padding",
        "mechanisms/compressed/linformer.py",
        "columns if scope.key_is_real is None else columns * scope.key_is_real[:, None, None, :]",
        "columns",
        suite("padding.py"),
        "linformer",
    ),
    Mutant(
        "slope of alibi with the wrong sign",
        "priors/alibi.py",
        "return -slope *",
        "return slope *",
        suite("score_terms.py"),
        "by_hand",
    ),
    Mutant(
        "score terms numbered by part, not by head of the layer",
        "core/score.py",
        "head=pairs.head + self.head",
        "head=pairs.head",
        ("tests/attention/test_multi_head.py",),
        "score_terms",
    ),
    Mutant(
        "weights drawn from the global random state",
        "core/draw.py",
        "torch.randn(tuple(shape), generator=generator, device=generator.device) * std",
        "torch.randn(tuple(shape)) * std",
        suite("state.py::test_nothing_uses_the_global_random_state"),
        "band",
    ),
    Mutant(
        "luna reads padding",
        "blocks/luna.py",
        "context_is_real=carry.key_is_real",
        "context_is_real=None",
        suite("blocks.py"),
        "luna",
    ),
    Mutant(
        "perceiver reads padding",
        "blocks/perceiver.py",
        "context_is_real=real",
        "context_is_real=None",
        suite("blocks.py"),
        "perceiver",
    ),
    Mutant(
        "post-norm forgets its first norm",
        "blocks/transformer.py",
        "            x = self.attention_norm(x)\n",
        "",
        ("tests/blocks/test_transformer.py",),
        "norm",
    ),
    Mutant(
        "published membership allowed under causal",
        "mechanisms/content/routing.py",
        'not (self.config.membership == "paper" and causal) or self.config.allow_selection_leak,',
        "True,",
        suite("capabilities.py"),
        "published",
    ),
)
MUTANTS = (
    ATTENTION_MUTANTS
    + KMEANS_MUTANTS
    + NATIVE_MUTANTS
    + IMAGE_TREE_MUTANTS
    + POSITION_MUTANTS
    + COMPOUND_MUTANTS
    + MOBA_MUTANTS
    + REFORMER_MUTANTS
    + STAR_ETC_MUTANTS
    + LOW_RANK_MUTANTS
    + INFORMER_MUTANTS
    + LINEAR_MUTANTS
    + CLUSTERED_MUTANTS
    + BINDING_MUTANTS
    + DELTA_MUTANTS
    + DISTANCE_MUTANTS
)
