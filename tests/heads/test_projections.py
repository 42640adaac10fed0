"""Projections: what they equal, what they keep, and trained layers with other ones."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.convert import collaborate, group_heads
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.errors import MapformersError
from mapformers.heads.collaborative import Collaborative
from tests.tolerances import assert_close

DIM, HEADS, N = 32, 4, 13
EVERY = (
    "multi_query",
    "grouped_query(kv_heads=2)",
    "collaborative",
    "collaborative(width=20, content_bias=true, start=normal)",
)
MECHANISMS = (
    pytest.param("full", marks=pytest.mark.slow),
    pytest.param("band(window=4)", marks=pytest.mark.slow),
    pytest.param("routing(clusters=3, window=5)", marks=pytest.mark.slow),
    "linear",
    "band(window=4):2 + full:2",
)


def layer(mechanism: str = "full", **options: object) -> MultiHeadAttention:
    return mf.attention(mechanism, DIM, HEADS, **options).double()  # type: ignore[arg-type]


def drawn(n: int = N) -> Tensor:
    return torch.randn(2, n, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("project", EVERY)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_they_decode_and_ignore_padding(mechanism: str, project: str) -> None:
    made = layer(mechanism, project=project, causal=True).eval()
    x, real = drawn(), torch.ones(2, N, dtype=torch.bool)
    real[0, :3] = False
    expected = made(x, key_is_real=real)
    assert_close(
        made(torch.where(real[..., None], x, 9.0), key_is_real=real)[real], expected[real], "rounding"
    )
    assert_close(expected[:1, 3:], made(x[:1, 3:]), "rounding")
    state, outputs = made.init_state(2), []
    for rows in (slice(0, 5), slice(5, 6), slice(6, N)):
        y, state = made.step(x[:, rows], state, key_is_real=real[:, rows])
        outputs.append(y)
    assert_close(torch.cat(outputs, 1)[real], expected[real], "decode", f"{mechanism}, {project}")


@pytest.mark.parametrize("project", EVERY)
def test_later_tokens_do_not_count(project: str) -> None:
    made, x = layer("band(window=4)", project=project, causal=True), drawn()
    changed = torch.cat([x[:, :8], -x[:, 8:]], 1)
    assert_close(made(changed)[:, :8], made(x)[:, :8], "rounding", project)


def test_multi_query_is_one_group() -> None:
    one, other = layer(project="multi_query"), layer(kv_heads=1)
    other.load_state_dict(one.state_dict())
    assert_close(one(drawn()), other(drawn()), "rounding")
    q, k, v = one.project(drawn(), drawn())
    full = mf.mechanism("full")
    repeated = mf.attend(full, q, k.repeat_interleave(HEADS, 1), v.repeat_interleave(HEADS, 1))
    assert_close(mf.attend(mf.mechanism("full"), q, k, v), repeated, "rounding")


def test_own_columns_are_separate_heads() -> None:
    """Mixing by the indicator of a head's columns equals multi-head attention."""
    plain, made = layer(), layer(project="collaborative")
    for name in ("query", "key", "value"):
        getattr(made.project, name).load_state_dict(getattr(plain.project, name).state_dict())
    made.merge.load_state_dict(plain.merge.state_dict())
    assert_close(made(drawn()), plain(drawn()), "rounding")


def test_equal_mixing_gives_equal_scores() -> None:
    made = layer(project="collaborative(content_bias=true)")
    assert isinstance(made.project, Collaborative)
    with torch.no_grad():
        made.project.mixing.fill_(1.0)
        made.project.content.weight.zero_()
    q, k, _ = made.project(drawn(), drawn())
    scores = q @ k.mT
    assert_close(scores[:, 1:], scores[:, :1].expand(-1, HEADS - 1, -1, -1), "rounding")


def test_the_content_bias_is_a_score_of_the_key() -> None:
    made, x = layer(project="collaborative(content_bias=true, width=24)"), drawn()
    q, k, _ = made.project(x, x)
    plain = (made.project.query(x)[:, None] * made.project.mixing[:, None]) @ made.project.key(x)[:, None].mT
    expected = (plain + made.project.content(x).mT[:, :, None]) / (24 / HEADS) ** 0.5
    assert_close(q @ k.mT / q.shape[-1] ** 0.5, expected, "rounding")


def test_full_attention_keeps_one_key_for_all_heads() -> None:
    made = layer(project="collaborative(width=16)", causal=True)
    _, state = made.step(drawn(), made.init_state(2))
    (part,) = state.parts
    assert part.keys.held().shape == (2, 1, N, 16)
    assert part.values.held().shape == (2, HEADS, N, DIM // HEADS)


def test_rotary_positions_are_refused() -> None:
    with pytest.raises(MapformersError, match="rotary: is not supported by collaborative"):
        mf.attention("full", DIM, HEADS, project="collaborative", rotary=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_means_of_equal_heads_change_nothing(kv_heads: int) -> None:
    plain = layer("routing(clusters=3, window=5)" if kv_heads == 4 else "band(window=4)", causal=True)
    with torch.no_grad():
        for part in (plain.project.key, plain.project.value):
            heads = part.weight.unflatten(0, (kv_heads, -1, DIM // HEADS))
            part.weight.copy_(heads[:, :1].expand_as(heads).flatten(0, 2))
    grouped = group_heads(plain, kv_heads)
    assert grouped.project.key.weight.shape[0] == kv_heads * DIM // HEADS
    assert_close(grouped(drawn()), plain(drawn()), "rounding")


def test_means_are_of_neighbouring_heads() -> None:
    plain = layer()
    grouped = group_heads(plain, 2)
    heads = plain.project.key.weight.unflatten(0, (HEADS, -1))
    assert_close(grouped.project.key.weight[: DIM // HEADS], (heads[0] + heads[1]) / 2, "rounding")
    with pytest.raises(MapformersError, match="projection must be multi_head, got grouped_query"):
        group_heads(grouped, 1)


@pytest.mark.slow
def test_a_trained_layer_becomes_collaborative() -> None:
    """Exact at full width, and closer the wider it is."""
    plain, x = layer("band(window=5)", causal=True), drawn()
    assert_close(collaborate(plain)(x), plain(x), "rounding")
    assert_close(collaborate(plain, 40)(x), plain(x), "rounding")
    errors = [float((collaborate(plain, width)(x) - plain(x)).norm().detach()) for width in (8, 20)]
    assert errors[0] > errors[1] > 0
    with pytest.raises(MapformersError, match="collaborate: is not possible with rotary positions"):
        collaborate(layer(rotary=True))


@pytest.mark.slow
def test_shared_directions_are_found() -> None:
    """Heads that differ only in how they weigh the same columns fit into few of them."""
    plain = layer()
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(2, 8, DIM, generator=generator, dtype=torch.float64)
    weights = torch.rand(HEADS, 8, 1, generator=generator, dtype=torch.float64) + 0.5
    with torch.no_grad():
        plain.project.query.weight.copy_((weights * basis[0]).flatten(0, 1))
        plain.project.key.weight.copy_(basis[1].repeat(HEADS, 1))
    x = drawn() / 8
    found = collaborate(plain, 8)(x)
    assert float((found - plain(x)).abs().max().detach()) < 1e-5


@pytest.mark.slow
def test_head_size_is_free() -> None:
    """Bhojanapalli et al. 2020: heads of any size; as large as the sequence they reach any weights."""
    made = mf.attention("full", DIM, 3, head_dim=20)
    assert made.project.query.weight.shape == (60, DIM)
    assert made(torch.zeros(1, 5, DIM)).shape == (1, 5, DIM)
    same = mf.attention("full", DIM, HEADS, head_dim=DIM // HEADS)
    assert_close(same(drawn().float()), mf.attention("full", DIM, HEADS)(drawn().float()), "rounding")
    named = mf.attention("full", 30, HEADS, project="head_size(size=8)")
    assert named.project.query.weight.shape == (32, 30)
    assert_close(
        named(torch.ones(1, 5, 30)),
        mf.attention("full", 30, HEADS, head_dim=8)(torch.ones(1, 5, 30)),
        "rounding",
    )
    errors = {}
    for size in (2, 12):
        generator = torch.Generator().manual_seed(0)
        goal = torch.softmax(3 * torch.randn(12, 12, generator=generator, dtype=torch.float64), -1)
        q, k = (
            torch.randn(12, size, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
        )
        optimiser = torch.optim.Adam([q, k], lr=0.1)
        for _ in range(2500):
            loss = (torch.softmax(q @ k.T / size**0.5, -1) - goal).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        errors[size] = float(loss.detach())
    assert errors[12] < 1e-3 < 100 * errors[12] < errors[2]
