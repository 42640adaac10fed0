"""FlexAttention over ranges against the torch path, on the CPU, where it runs unfused and without gradients.

There it looks at mask_mod alone. For the tables of blocks and for gradients, a stand-in follows the
documented meaning of the arguments, pair by pair.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import AuxOutput, BlockMask, create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

import mapformers as mf
from mapformers.core.attended import Attended
from mapformers.core.plans import Ranges, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.gpu import flex
from mapformers.kernels.gpu.flex import block_mask_of, flex_range_attend, range_mask
from mapformers.kernels.ranges import range_attend
from mapformers.kernels.softmax import expand_heads, softmax_attend
from mapformers.kernels.windows import ranges_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.slow  # unfused FlexAttention is slow on the CPU

BATCH, HEADS, DIM, VALUE_DIM, BLOCK = 2, 4, 8, 5, 128
LENGTHS = (1, 2, 17, 40, 127, 128, 129, 200, 300)
SETTINGS = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, torch still sends every call through dynamo; without that it is ten times as fast."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@dataclass(frozen=True)
class Case:
    plan: Windows
    scope: Scope
    n: int
    m: int


def clusters(generator: torch.Generator, heads: int, length: int, copies: int, count: int = 4) -> Tensor:
    """[B, heads, length, copies] different segments for every token, a fifth of them none."""
    order = torch.rand((BATCH, heads, length, count), generator=generator).argsort(-1)[..., :copies]
    return order.masked_fill(torch.rand(order.shape, generator=generator) < 0.2, -1)


def cases_of(n: int, causal: bool, generator: torch.Generator) -> Iterator[tuple[str, Case]]:
    """One plan of every kind over n tokens."""
    index = torch.arange(n)[None, None]
    after = 0 if causal else 3
    all_behind = 0 if causal else None
    plain = Scope(causal=causal)
    band, whole = Windows(before=5, after=after), Windows(before=None, after=all_behind)
    blocks, dilated = index // 16, index % 3
    named = clusters(generator, 2, n, 1)  # of the two key/value heads
    real = torch.rand((BATCH, n), generator=generator) > 0.3
    documents = torch.randint(0, 3, (BATCH, n), generator=generator).sort(-1).values
    padded = Scope(causal=causal, key_is_real=real)
    packed = Scope.of(causal=causal, segments=documents)
    several = Windows(20, after, clusters(generator, HEADS, n, 3), named)
    plans = {
        "band": (band, plain),
        "wide band": (replace(band, before=150), plain),
        "whole": (whole, plain),
        "nobody before": (replace(band, before=0), plain),
        "blocks": (replace(whole, query_segment=blocks, key_segment=blocks), plain),
        "dilated": (replace(band, query_segment=dilated, key_segment=dilated), plain),
        "clusters": (replace(band, query_segment=clusters(generator, HEADS, n, 1), key_segment=named), plain),
        "rounds": (several, plain),
        "copies of keys": (replace(several, key_segment=clusters(generator, 2, n, 2)), plain),
        "padded band": (band, padded),
        "padded rounds": (several, padded),
        "packed band": (band, packed),
        "packed and padded blocks": (
            replace(whole, query_segment=blocks, key_segment=blocks),
            replace(packed, key_is_real=real),
        ),
    }
    for name, (plan, scope) in plans.items():
        yield name, Case(plan, scope, n, n)


def inputs_of(case: Case, generator: torch.Generator, dtype: torch.dtype, groups: int = 2) -> list[Tensor]:
    """q, k, v."""
    sizes = (HEADS, case.n, DIM), (groups, case.m, DIM), (groups, case.m, VALUE_DIM)
    return [torch.randn((BATCH, *size), generator=generator, dtype=dtype) for size in sizes]


def ranges_of_case(case: Case) -> Ranges:
    return ranges_of(case.plan, case.scope, case.n, case.m, CPU)


def assert_same(ours: Attended, reference: Attended, what: str) -> None:
    """Outputs and log-sum-exps, where anything is seen; and where nothing is, 0 and -inf."""
    seen = reference.lse.isfinite()
    assert torch.equal(ours.lse.isfinite(), seen), what
    assert (ours.lse[~seen] == -math.inf).all(), what
    assert (ours.output[~seen] == 0).all(), what
    assert_close(ours.output, reference.output, "decode", what)  # 1e-5 in float32, 1e-9 in float64
    assert_close(ours.lse[seen], reference.lse[seen], "decode", what)


def assert_flex(case: Case, qkv: list[Tensor], score: ScoreTerm | None = None, what: str = "") -> None:
    ranges = ranges_of_case(case)
    ours = flex_range_attend(ranges, *qkv, case.scope, score)
    assert ours.kernel == "flex"
    assert ours.output.dtype == qkv[0].dtype
    assert_same(ours, range_attend(ranges, *(x.double() for x in qkv), case.scope, score), what)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", LENGTHS)
def test_flex_equals_the_torch_path(n: int, causal: bool, generator: torch.Generator) -> None:
    for name, case in cases_of(n, causal, generator):
        for dtype in (torch.float32, torch.float64):
            assert_flex(case, inputs_of(case, generator, dtype), what=f"{name}, {dtype}")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_flex_shares_key_value_heads(groups: int, generator: torch.Generator) -> None:
    for name, case in cases_of(40, True, generator):
        shared = case.plan.key_segment is not None and case.plan.key_segment.shape[1] == 2
        if not (shared and groups == 1):  # one key/value head cannot lie in the segments of two
            assert_flex(case, inputs_of(case, generator, torch.float64, groups), what=name)


@pytest.mark.parametrize("n", [17, 129])
def test_flex_adds_score_terms_by_true_positions(n: int, generator: torch.Generator) -> None:
    alibi = mf.score("alibi", HEADS, DIM)
    for name, case in cases_of(n, False, generator):
        moved = torch.rand((BATCH, n), generator=generator).mul(3 * n).long().sort(-1).values
        case = replace(case, scope=replace(case.scope, positions=moved))
        assert_flex(case, inputs_of(case, generator, torch.float32), alibi, name)


def test_flex_merges_rounds_weights_and_mass(generator: torch.Generator) -> None:
    mass = torch.randn((BATCH, HEADS, 40), generator=generator, dtype=torch.float64)
    for rounds in (1, 3):
        segments = clusters(generator, HEADS, 40, rounds), clusters(generator, 2, 40, 1)
        weight = torch.randn((BATCH, HEADS, 40, rounds), generator=generator, dtype=torch.float64)
        case = Case(Windows(6, 2, *segments, log_weight=weight), Scope(), 40, 40)
        q, k, v = inputs_of(case, generator, torch.float64)
        for ranges in (ranges_of_case(case), replace(ranges_of_case(case), mass=mass)):
            reference = range_attend(ranges, q, k, v, case.scope)
            assert_same(flex_range_attend(ranges, q, k, v, case.scope), reference, f"{rounds} rounds")


def test_flex_gives_nothing_to_rows_that_see_nothing(generator: torch.Generator) -> None:
    nowhere = Windows(3, 0, torch.full((1, 1, 17), -1), torch.zeros(1, 1, 17, dtype=torch.long))
    case = Case(nowhere, Scope(causal=True), 17, 17)
    attended = flex_range_attend(ranges_of_case(case), *inputs_of(case, generator, torch.float32), case.scope)
    assert (attended.output == 0).all()
    assert (attended.lse == -math.inf).all()


@st.composite
def random_cases(draw: st.DrawFn) -> tuple[Case, torch.Generator]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    n = draw(st.one_of(st.integers(1, 20), st.integers(120, 136), st.integers(1, 300)))
    m = draw(st.one_of(st.just(n), st.integers(1, 300)))
    causal, named, packed = (draw(st.booleans()) for _ in range(3))
    count = draw(st.integers(1, 5))
    plan = Windows(
        before=draw(st.one_of(st.none(), st.integers(0, 5), st.integers(100, 200))),
        after=0 if causal else draw(st.one_of(st.none(), st.integers(0, 5), st.integers(100, 200))),
        query_segment=clusters(generator, HEADS, n, draw(st.integers(1, count)), count) if named else None,
        key_segment=clusters(generator, 2, m, draw(st.integers(1, min(2, count))), count) if named else None,
    )
    scope = Scope(
        causal=causal,
        key_is_real=torch.rand((BATCH, m), generator=generator) > 0.3 if draw(st.booleans()) else None,
        segments=torch.randint(0, 3, (BATCH, n), generator=generator) if packed else None,
        key_segments=torch.randint(0, 3, (BATCH, m), generator=generator) if packed else None,
        positions=torch.randint(0, 99, (BATCH, n), generator=generator) if draw(st.booleans()) else None,
        query_start=draw(st.integers(0, 3)),
    )
    return Case(plan, scope, n, m), generator


@SETTINGS
@given(drawn=random_cases(), biased=st.booleans(), dtype=st.sampled_from((torch.float32, torch.float64)))
def test_flex_equals_the_torch_path_over_random_plans(
    drawn: tuple[Case, torch.Generator], biased: bool, dtype: torch.dtype
) -> None:
    case, generator = drawn
    score = mf.score("alibi", HEADS, DIM) if biased else None
    assert_flex(case, inputs_of(case, generator, dtype), score, str(case))


def block_table(number: Tensor, index: Tensor) -> Tensor:
    """[.., rows, columns] bool out of the number of blocks of each row and their indices, in front."""
    listed = torch.arange(index.shape[-1]) < number.unsqueeze(-1)
    return torch.zeros_like(listed).scatter(-1, index.long(), listed)


def pairs_of(mask: BlockMask, n: int, m: int) -> Tensor:
    """[B, H, N, M] bool: the full blocks without asking mask_mod, the others listed by it, and no more."""
    rows, columns = torch.arange(n)[:, None], torch.arange(m)
    tables = (
        block_table(*pair)[..., rows // BLOCK, columns // BLOCK]
        for pair in ((mask.full_kv_num_blocks, mask.full_kv_indices), (mask.kv_num_blocks, mask.kv_indices))
    )
    full, partial = tables
    batch, head = (
        torch.arange(size).view(shape) for size, shape in ((BATCH, (-1, 1, 1, 1)), (HEADS, (-1, 1, 1)))
    )
    return full | (partial & mask.mask_mod(batch, head, rows, columns))


def dense_flex(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, AuxOutput]:
    """flex_attention by the meaning of its arguments, with gradients."""
    assert set(options) == {"score_mod", "block_mask", "scale", "enable_gqa", "return_aux"}
    assert options["return_aux"].lse
    assert options["enable_gqa"] == (k.shape[1] != HEADS)
    k, v = expand_heads(k, HEADS), expand_heads(v, HEADS)
    scores = q @ k.transpose(2, 3) * options["scale"]
    if options["score_mod"] is not None:
        places = (torch.arange(size) for size in scores.shape)
        batch, head, row, column = torch.meshgrid(*places, indexing="ij")
        scores = options["score_mod"](scores, batch, head, row, column)
    attended = softmax_attend(scores, pairs_of(options["block_mask"], *scores.shape[2:]), v)
    return attended.output, AuxOutput(lse=attended.lse)


def gradients(attended: Attended, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Of the output, and of the log-sum-exp where it has one."""
    generator = torch.Generator().manual_seed(3)
    seen = torch.where(attended.lse.isfinite(), attended.lse, 0.0)
    ends = [x for x in (attended.output, seen) if x.requires_grad]
    return torch.autograd.grad(
        ends, leaves, [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in ends]
    )


@SETTINGS
@given(drawn=random_cases())
def test_flex_lists_the_right_blocks_and_passes_gradients_on(drawn: tuple[Case, torch.Generator]) -> None:
    """The unfused form on the CPU looks at mask_mod alone; this one at the tables of blocks too."""
    case, generator = drawn
    leaves = [x.requires_grad_() for x in inputs_of(case, generator, torch.float64)]
    ranges, alibi = ranges_of_case(case), mf.score("alibi", HEADS, DIM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "flex_attention", dense_flex)
        ours = flex_range_attend(ranges, *leaves, case.scope, alibi)
    reference = range_attend(ranges, *leaves, case.scope, alibi)
    assert_same(ours, reference, str(case))
    for one, other in zip(gradients(ours, leaves), gradients(reference, leaves), strict=True):
        assert_close(one, other, "gradient", str(case))


@SETTINGS
@given(seed=st.integers(0, 10_000), n=st.integers(1, 400), m=st.integers(1, 700), wide=st.booleans())
def test_block_masks_hold_the_blocks_touched_and_the_full_ones(seed: int, n: int, m: int, wide: bool) -> None:
    """Ranges of any kind, empty and backward ones among them, against every pair and against torch's own."""
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randint(0, m + 1, (2, BATCH, 1, n), generator=generator)
    if wide:  # so that full blocks occur
        start, end = start // 3, m - end // 3
    key = torch.arange(m)
    inside = (start.unsqueeze(-1) <= key) & (key < end.unsqueeze(-1))  # [B, 1, N, M]
    mask = block_mask_of(start, end, m)
    assert torch.equal(pairs_of(mask, n, m), inside.expand(-1, HEADS, -1, -1))
    whole = torch.nn.functional.pad(inside, (0, -m % BLOCK, 0, -n % BLOCK))
    tiles = (
        whole.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    )  # [B, 1, nq, nk, 128, 128]
    full, touched = tiles.all(-1).all(-1), tiles.any(-1).any(-1)
    assert torch.equal(block_table(mask.full_kv_num_blocks, mask.full_kv_indices), full)
    assert torch.equal(block_table(mask.kv_num_blocks, mask.kv_indices), touched & ~full)
    theirs = create_block_mask(range_mask(start, end), BATCH, 1, n, m, device="cpu")
    assert mask.shape == theirs.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        for part in (f"{name}_num_blocks", f"{name}_indices"):
            assert torch.equal(getattr(mask, part), getattr(theirs, part)), part


def test_one_query_that_misses_one_key_takes_a_block_from_the_full_ones() -> None:
    start, end = torch.zeros(1, 1, 2 * BLOCK, dtype=torch.long), torch.full((1, 1, 2 * BLOCK), 3 * BLOCK)
    end[..., BLOCK - 1], start[..., BLOCK + 5] = 3 * BLOCK - 1, 1
    mask = block_mask_of(start, end, 3 * BLOCK)
    full = block_table(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert full[0, 0].tolist() == [[True, True, False], [False, True, True]]
    assert torch.equal(block_table(mask.kv_num_blocks, mask.kv_indices), ~full)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            self.entries = max(self.entries, one.numel() if isinstance(one, Tensor) else 0)
        return made


def test_a_block_mask_makes_no_tensor_of_all_pairs() -> None:
    n = 64 * BLOCK
    end = torch.arange(1, n + 1)[None, None]
    with Largest() as largest:
        mask = block_mask_of((end - 1000).clamp(min=0), end, n)
    assert mask.kv_num_blocks.sum() > 0
    assert 0 < largest.entries <= 2 * n  # n numbers, and n^2 / 128^2 blocks


def test_lengths_and_layers_share_a_kernel(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile takes mask and score terms whole, and does not start anew for every layer or length."""
    kernels: list[Any] = []

    def record(graph: Any, inputs: Any) -> Any:
        kernels.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=record))
    monkeypatch.setattr(torch_flex, "flex_attention", flex._compiled.__wrapped__())
    for layer in range(4):
        case = dict(cases_of(40, True, generator))["band"]
        assert_flex(
            case, inputs_of(case, generator, torch.float32), mf.score("alibi", HEADS, DIM), f"{layer}"
        )
    assert len(kernels) == 1
    for n in (41, 129, 130, 200, 300):
        for name in ("band", "blocks", "packed band"):
            case = dict(cases_of(n, True, generator))[name]
            assert_flex(
                case, inputs_of(case, generator, torch.float32), mf.score("alibi", HEADS, DIM), f"{n}"
            )
    # The first length; then three kinds of orders, once for one block of queries and once for several.
    assert len(kernels) <= 1 + 3 * 2


@pytest.mark.slow
@pytest.mark.clean_memory
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="FlexAttention compiles for AVX2 and later")
def test_compiled_flex_reads_the_table_of_blocks(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one compiled form that there is without a GPU: it has no log-sum-exp, and lengths must not vary."""
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def without_lse(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, AuxOutput]:
        del options["return_aux"]
        return compiled(q, k, v, **options), AuxOutput(lse=torch.zeros(q.shape[:3]))

    monkeypatch.setattr(torch_flex, "flex_attention", without_lse)
    for name, score in (("whole", None), ("band", mf.score("alibi", HEADS, DIM)), ("clusters", None)):
        case = dict(cases_of(300, True, generator))[name]
        ranges = ranges_of_case(case)
        q, k, v = (torch.randn(BATCH, heads, 300, 16, generator=generator) for heads in (HEADS, 2, 2))
        with torch.no_grad():
            ours = flex_range_attend(ranges, q, k, v, case.scope, score)
        reference = range_attend(ranges, q, k, v, case.scope, score)
        assert_close(ours.output, reference.output, "decode", name)
