"""varlen_attn over windows, and which back end runs where. varlen_attn has no form for the CPU: a stand-in
follows the documented meaning of its arguments.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen as torch_varlen

import mapformers as mf
from mapformers.core.attended import Attended
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.kernels import run as dispatch
from mapformers.kernels.gpu.flex import flex_can_run
from mapformers.kernels.gpu.varlen import varlen_arguments, varlen_can_run, varlen_window_attend
from mapformers.kernels.native.library import SWITCH, torch_kernels
from mapformers.kernels.ranges import range_attend
from mapformers.kernels.softmax import expand_heads, softmax_attend
from tests.kernels.test_gpu import (
    BATCH,
    CPU,
    HEADS,
    LENGTHS,
    SETTINGS,
    Case,
    assert_same,
    cases_of,
    gradients,
    inputs_of,
    ranges_of_case,
)
from tests.tolerances import assert_close


def dense_varlen(q: Tensor, k: Tensor, v: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """varlen_attn by the meaning of its arguments: query i of a sequence sees the keys i - left to i + right,
    counted from the end of the sequence where it has more keys than queries; -1 = all.
    """
    cu_seq_q, cu_seq_k, max_q, max_k = arguments
    left, right = options["window_size"]
    assert left >= -1
    assert right >= -1
    assert options["return_aux"].lse
    assert options["enable_gqa"] == (k.shape[1] != q.shape[1])
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (int(cu_seq_q[0]), int(cu_seq_q[-1])) == (0, q.shape[0])
    assert (int(cu_seq_k[0]), int(cu_seq_k[-1])) == (0, k.shape[0])
    assert (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) == (max_q, max_k)
    outputs, sums = [], []
    for rows, keys in zip(spans(cu_seq_q), spans(cu_seq_k), strict=True):
        one, heads = q[rows].transpose(0, 1), q.shape[1]  # [H, Nq, D]
        k_one, v_one = (expand_heads(x[keys].transpose(0, 1)[None], heads)[0] for x in (k, v))
        offset = torch.arange(k_one.shape[1]) - torch.arange(one.shape[1])[:, None]
        offset = offset - (k_one.shape[1] - one.shape[1])
        allowed = ((offset >= -left) | (left < 0)) & ((offset <= right) | (right < 0))
        attended = softmax_attend(one @ k_one.transpose(1, 2) * options["scale"], allowed, v_one)
        outputs.append(attended.output.transpose(0, 1))
        sums.append(attended.lse)
    return torch.cat(outputs), torch.cat(sums, 1)  # [T, H, E], [H, T]


def spans(borders: Tensor) -> list[slice]:
    return [slice(*pair) for pair in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)]


def arguments_of(case: Case) -> Any:
    return varlen_arguments(case.plan, case.scope, BATCH, case.n, case.m, CPU)


def assert_varlen(case: Case, qkv: list[Tensor], what: str) -> None:
    """Outputs, log-sum-exps and gradients of the outputs."""
    arguments = arguments_of(case)
    assert arguments is not None, what
    leaves = [x.requires_grad_() for x in qkv]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_varlen, "varlen_attn", dense_varlen)
        ours = varlen_window_attend(arguments, *leaves)
    reference = range_attend(ranges_of_case(case), *leaves, case.scope)
    assert ours.kernel == "varlen"
    assert not ours.lse.requires_grad, "varlen_attn drops the gradient of its log-sum-exp"
    assert_same(ours, reference, what)
    ours, reference = (x._replace(lse=x.lse.detach()) for x in (ours, reference))
    for one, other in zip(gradients(ours, leaves), gradients(reference, leaves), strict=True):
        assert_close(one, other, "gradient", what)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", LENGTHS)
def test_varlen_equals_the_torch_path(n: int, causal: bool, generator: torch.Generator) -> None:
    fitting = {"band", "wide band", "whole", "blocks", "dilated", "packed band"}
    for name, case in cases_of(n, causal, generator):
        if name in fitting:
            assert_varlen(case, inputs_of(case, generator, torch.float64), name)
            assert_varlen(case, inputs_of(case, generator, torch.float32), name)
        elif name not in ("padded band", "packed and padded blocks") or not case.scope.key_is_real.all():
            assert arguments_of(case) is None, name


@st.composite
def fitting_cases(draw: st.DrawFn) -> tuple[Case, int, torch.Generator]:
    """Plans with one order for queries and keys; the number of key/value heads."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    n = draw(st.one_of(st.integers(1, 20), st.integers(1, 200)))
    causal = draw(st.booleans())
    segment = None
    if draw(st.booleans()):
        shape = (draw(st.sampled_from((1, BATCH))), 1, n, *draw(st.sampled_from(((), (1,)))))
        segment = torch.randint(-1, draw(st.integers(1, 6)), shape, generator=generator)
        segment.view(shape[0], n)[:, 0] = 0  # somebody is somewhere
    packed = draw(st.booleans())
    cached = draw(st.integers(0, 30)) if segment is None and not packed else 0
    plan = Windows(
        before=draw(st.one_of(st.none(), st.integers(1, 9), st.integers(50, 250))),
        after=0 if causal else draw(st.one_of(st.none(), st.integers(0, 9), st.integers(50, 250))),
        query_segment=segment,
        key_segment=segment,
    )
    scope = Scope(
        causal=causal,
        segments=torch.randint(0, 3, (BATCH, n), generator=generator) if packed else None,
        key_is_real=torch.ones(BATCH, n + cached, dtype=torch.bool) if draw(st.booleans()) else None,
        query_start=cached,
    )
    return Case(plan, scope, n, n + cached), draw(st.sampled_from((1, 2, HEADS))), generator


@pytest.mark.slow
@SETTINGS
@given(fitting_cases())
def test_varlen_equals_the_torch_path_over_random_plans(drawn: tuple[Case, int, torch.Generator]) -> None:
    case, groups, generator = drawn
    assert_varlen(case, inputs_of(case, generator, torch.float64, groups), str(case))


def test_an_order_is_named_only_where_rows_move() -> None:
    index = torch.arange(40)[None, None]
    in_place = Windows(4, 0, index // 16, index // 16)
    assert (
        varlen_arguments(replace(in_place, key_segment=in_place.query_segment), Scope(), 2, 40, 40, CPU).order
        is None
    )
    dilated = index % 3
    order = varlen_arguments(Windows(4, 0, dilated, dilated), Scope(), 1, 40, 40, CPU).order
    assert order.tolist() == sorted(range(40), key=lambda i: (i % 3, i))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "options"), [("band", {"window": 4}), ("block_local", {"block": 16})])
def test_mechanisms_fit(name: str, options: dict[str, int], causal: bool, generator: torch.Generator) -> None:
    """They name the segments of queries and of keys apart, in tensors of their own."""
    scope = Scope.of(causal, segments=torch.arange(40).expand(BATCH, -1) // 30)
    qkv = inputs_of(Case(Windows(1), scope, 40, 40), generator, torch.float64)
    plan = mf.mechanism(name, **options).plan(*qkv[:2], scope)
    assert_varlen(Case(plan, scope, 40, 40), qkv, name)


def unfitting() -> Iterator[tuple[str, Windows, Scope]]:
    index = torch.arange(40)[None, None]
    blocks = Windows(4, 0, index // 16, None)
    blocks = replace(blocks, key_segment=blocks.query_segment)
    real = torch.ones(BATCH, 40, dtype=torch.bool)
    real[0, 3] = False
    documents = torch.zeros(BATCH, 40, dtype=torch.long)
    yield "another order of the keys", replace(blocks, key_segment=index // 8), Scope()
    yield "segments of the queries alone", replace(blocks, key_segment=None), Scope()
    several = torch.stack([index // 16, index // 8], -1)
    yield "two rounds", replace(blocks, query_segment=several, key_segment=several), Scope()
    per_head = (index // 16).expand(1, HEADS, 40).clone()
    yield "heads of their own", replace(blocks, query_segment=per_head, key_segment=per_head), Scope()
    yield (
        "nowhere",
        replace(blocks, query_segment=(none := torch.full_like(index, -1)), key_segment=none),
        Scope(),
    )
    yield "weights", replace(blocks, log_weight=torch.zeros(1, 1, 40, 1)), Scope()
    yield "skipped keys", Windows(4, 0, skip=2), Scope()
    yield "hidden keys", Windows(4, 0, key_is_seen=real[:, None]), Scope()
    yield "no key before", Windows(0, 3), Scope()
    yield "padding", Windows(4, 0), Scope(key_is_real=real)
    yield "documents of the keys", Windows(4, 0), Scope(segments=documents, key_segments=1 - documents)
    yield "queries further on, in blocks", blocks, Scope(query_start=1)
    yield "queries before the end", Windows(4, 0), Scope(query_start=1)
    yield "the future under a causal scope", Windows(4, 1), Scope(causal=True)


@pytest.mark.parametrize(
    ("what", "plan", "scope"), list(unfitting()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_what_does_not_fit_is_left_alone(what: str, plan: Windows, scope: Scope) -> None:
    assert varlen_arguments(plan, scope, BATCH, 40, 40, CPU) is None, what


def test_no_field_of_windows_is_overlooked() -> None:
    """Whether a new field fits is a question that `varlen_arguments` must answer."""
    answered = {"before", "after", "query_segment", "key_segment", "log_weight", "skip", "key_is_seen"}
    assert {one.name for one in fields(Windows)} == answered | {"segment_count"}  # which is for decoding


# Which back end runs. A fake tensor says that it lies on a GPU, and holds nothing.


def on_gpu(dtype: torch.dtype, dim: int = 64, value_dim: int = 64, n: int = 40) -> list[Tensor]:
    """q, k, v."""
    sizes = (HEADS, dim), (2, dim), (2, value_dim)
    return [torch.zeros(BATCH, heads, n, size, dtype=dtype, device="cuda") for heads, size in sizes]


@pytest.fixture
def recent_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has one, as far as tensors without content can tell."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with FakeTensorMode():
        yield


@pytest.fixture
def called(recent_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of run.py answer with their names and with nothing else."""
    for name in ("flex_range_attend", "varlen_window_attend", "range_attend", "native_range_attend"):
        said = name.split("_")[0].replace("range", "torch")

        def answer(*arguments: Any, said: str = said) -> Attended:
            return Attended(arguments[1], arguments[1].sum(-1), said)

        monkeypatch.setattr(dispatch, name, answer)
    monkeypatch.setattr(dispatch, "ranges_of", lambda *arguments: None)


BAND, SCOPE = Windows(before=5), Scope(causal=True)


def chosen(plan: Windows, qkv: list[Tensor], score: Any = None) -> tuple[str, str]:
    """The kernels where the output alone is wanted, and where the log-sum-exp is too."""
    return dispatch.run_output(plan, *qkv, SCOPE, score)[1], dispatch.run(plan, *qkv, SCOPE, score).kernel


@pytest.mark.usefixtures("called")
def test_varlen_runs_for_outputs_in_half_types_and_flex_for_the_rest() -> None:
    """The log-sum-exp of varlen_attn has no gradient, so it must not reach a merge."""
    assert chosen(BAND, on_gpu(torch.bfloat16)) == ("varlen", "flex")
    assert chosen(BAND, on_gpu(torch.float16)) == ("varlen", "flex")
    assert chosen(BAND, on_gpu(torch.float32)) == ("flex", "flex")
    assert chosen(BAND, on_gpu(torch.float64)) == ("torch", "torch")
    assert chosen(replace(BAND, before=0), on_gpu(torch.bfloat16)) == ("flex", "flex")
    assert chosen(BAND, on_gpu(torch.bfloat16), object()) == ("flex", "flex")
    assert chosen(BAND, [torch.zeros(1, 1, 4, 16, dtype=torch.float16)] * 3) == ("torch", "torch")


@pytest.mark.usefixtures("called")
def test_the_torch_path_can_be_had_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = on_gpu(torch.float16), on_gpu(torch.float32)
    with torch_kernels():
        assert chosen(BAND, half) == chosen(BAND, single) == ("torch", "torch")
    monkeypatch.setenv(SWITCH, "0")
    assert chosen(BAND, half) == chosen(BAND, single) == ("torch", "torch")
    monkeypatch.setenv(SWITCH, "1")
    assert chosen(BAND, half) == ("varlen", "flex")


@pytest.mark.usefixtures("recent_gpu")
def test_each_back_end_knows_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = on_gpu(torch.float16), on_gpu(torch.float32)
    assert varlen_can_run(*half)
    assert flex_can_run(*half)
    assert flex_can_run(*single)
    for refused in (
        single,
        [*half[:2], single[2]],
        on_gpu(torch.float16, 64, 32),
        on_gpu(torch.float16, 20, 20),
    ):
        assert not varlen_can_run(*refused)
    assert not varlen_can_run(*on_gpu(torch.float16, 264, 264))
    assert not flex_can_run(*on_gpu(torch.float32, 8, 64))
    assert not flex_can_run(*on_gpu(torch.float32, 64, 8))
    assert not flex_can_run(*single[:2], half[2])
    assert not flex_can_run(*on_gpu(torch.float32, n=0))
    assert not varlen_can_run(*on_gpu(torch.float16, n=0))
    for place in ("cpu", "meta"):
        elsewhere = [torch.zeros(1, 1, 4, 64, dtype=torch.float16, device=place)] * 3
        assert not varlen_can_run(*elsewhere)
        assert not flex_can_run(*elsewhere)
    inside = []
    torch.vmap(lambda x: inside.append(flex_can_run(*single) or varlen_can_run(*half)) or x)(torch.zeros(2))
    assert inside == [False]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not varlen_can_run(*half)
    assert flex_can_run(*half)
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    assert not flex_can_run(*half)
