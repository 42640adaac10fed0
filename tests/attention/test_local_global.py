"""The projection local_global: rows that the mechanism marks have a second set of q, k, v."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mapformers as mf
from tests.contract import cases
from tests.mechanisms.test_longformer import mask_of
from tests.tolerances import assert_close

N = 30
TEXT = "longformer(window=4, global_tokens=3)"
MIXED = "longformer(window=4, global_tokens=3):2 + longformer(window=2, dilation=3, global_tokens=5):2"
SECOND = ("global_query", "global_key", "global_value")


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return cases.draw((2, N, cases.DIM), generator)


def layer(text: str, project: str = "local_global", **options: object) -> nn.Module:
    return mf.attention(text, cases.DIM, cases.HEADS, project=project, **options).double().eval()


@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"score": "alibi"}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "left", "holes", "packed"])
@pytest.mark.parametrize("text", [TEXT, MIXED])
def test_it_starts_as_one_set(
    text: str, kind: str, options: dict[str, object], x: Tensor, generator: torch.Generator
) -> None:
    """Copies: with whatever else a layer has, nothing differs from the plain projection."""
    scope = cases.scope_arguments(kind, N, generator)
    expected = layer(text, "multi_head", **options)(x, **scope)
    assert_close(layer(text, **options)(x, **scope), expected, "rounding")


def test_two_sets_are_the_formula(x: Tensor, generator: torch.Generator) -> None:
    """Global rows: full attention of the second set. All others: the first set, for global keys too."""
    made = layer(MIXED)
    cases.stir(made, generator)
    first, second = made.project(x, x), made.project.second(x, x)
    rank = torch.arange(N)[None]
    parts = ((4, 1, 3), (2, 3, 5))
    mask = torch.cat([mask_of(*part, False, rank).expand(1, 2, -1, -1) for part in parts], 1)
    local = F.scaled_dot_product_attention(*first, attn_mask=mask)
    everything = F.scaled_dot_product_attention(*second)
    is_global = torch.arange(N) < torch.tensor([3, 3, 5, 5])[:, None]  # [H, N]
    expected = torch.where(is_global[..., None], everything, local)
    assert_close(made(x), made.merge(expected), "parity")


def test_each_set_learns_from_its_own_rows(x: Tensor) -> None:
    made, merge = layer(TEXT), "merge.output.weight"
    for rows, learns in ((slice(0, 3), True), (slice(3, N), False)):
        made.zero_grad()
        made(x)[:, rows].square().sum().backward()
        for name, parameter in made.named_parameters():
            moved = parameter.grad is not None and bool(parameter.grad.any())
            assert moved == (name == merge or (name.split(".")[1] in SECOND) == learns), name


def test_the_state_dict_holds_both_sets(x: Tensor, generator: torch.Generator) -> None:
    made, again = layer(TEXT), layer(TEXT, seed=3)
    cases.stir(made, generator)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), made(x))
    one = sum(p.numel() for p in layer(TEXT, "multi_head").parameters())
    assert sum(p.numel() for p in made.parameters()) == one + 3 * cases.DIM**2


def test_the_audit_passes(generator: torch.Generator) -> None:
    made = layer(MIXED)
    cases.stir(made, generator)
    report = mf.audit(made, causal=False, length=24)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("text", "causal", "word"),
    [
        (TEXT, True, "causal=True"),
        ("longformer(window=4)", False, "longformer"),
        ("band(window=4)", False, "band"),
        (f"{TEXT}:2 + band(window=4):2", False, "and band"),
        ("full", True, "full"),
    ],
)
def test_where_no_rows_are_marked_it_is_refused(text: str, causal: bool, word: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"local_global: needs causal=False .*{word}.*; "):
        layer(text, causal=causal)


def test_a_mechanism_that_marks_rows_must_say_how(x: Tensor) -> None:
    class Marking(type(mf.mechanism("band"))):  # type: ignore[misc]
        marks_rows = True

    made = mf.attention(Marking(), cases.DIM, cases.HEADS, project="local_global").double()
    with pytest.raises(NotImplementedError, match=r"Marking must define plan_by_rows"):
        made(x)
