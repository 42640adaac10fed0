"""Delta rule: by hand, beside the recurrence of the paper, its maps, and what it is for: writing anew."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.core.mechanism import Shape
from mapformers.mechanisms.linear.delta import Delta, DeltaConfig, dpfp
from tests.tolerances import assert_close


def delta(heads: int = 2, dim: int = 4, seed: int = 0, **options: object) -> Delta:
    made = Delta(DeltaConfig(**options))  # type: ignore[arg-type]
    made.bind(Shape(heads, heads, dim), torch.Generator().manual_seed(seed))
    return made.double()


def strength(made: Delta, beta: float) -> None:
    """The same beta for every key."""
    with torch.no_grad():
        made.beta_weight.zero_()
        made.beta_bias.fill_(torch.tensor(beta).logit())


def rows(*values: list[float]) -> Tensor:
    """[1, 1, N, D]."""
    return torch.tensor(values, dtype=torch.float64)[None, None]


def by_recurrence(made: Delta, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Token by token, one batch row and head at a time, written from the paper's equations."""
    output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            memory = None
            for i in range(q.shape[2]):
                asked, key = (feature(x[b, h, i], made.config) for x in (q, k))
                if memory is None:
                    memory = torch.zeros(len(key), v.shape[-1], dtype=q.dtype)
                beta = 1 / (1 + torch.exp(-(made.beta_weight[h] @ k[b, h, i] + made.beta_bias[h])))
                memory = memory + beta * torch.outer(key, v[b, h, i] - memory.T @ key)
                output[b, h, i] = memory.T @ asked
    return output


def feature(x: Tensor, config: DeltaConfig) -> Tensor:
    """[F] of one token, product by product."""
    size = len(x)
    if config.map == "elu":
        found = [torch.exp(c) if c <= 0 else c + 1 for c in x]
    else:
        parts = [max(s * c, 0 * c) for s in (1, -1) for c in x]
        found = [
            parts[i] * parts[(i - j) % (2 * size)] for j in range(1, config.nu + 1) for i in range(2 * size)
        ]
    return torch.stack(found) / sum(found)


def test_four_tokens_by_hand() -> None:
    """dpfp, once it is divided by its sum, makes (0, 1, 0, 0) of (1, 1), (1, 0, 0, 0) of (1, -1) and
    (0, 0, 0, 1) of (-1, -1): keys that are apart. With beta = 1/2 the second value of a key covers half of
    the first.
    """
    made = delta(1, 2)
    strength(made, 0.5)
    k = rows([1, 1], [1, -1], [2, 2], [-1, -1])  # the third is the first again
    q = rows([1, 1], [1, 1], [3, 3], [1, -1])
    #  first key     halves of v_0, then of v_2 and a quarter of v_0;  the last query reads the second key
    expected = rows([0.5, 0, 0, 0], [0.5, 0, 0, 0], [0.25, 0, 0.5, 0], [0, 0.5, 0, 0])
    assert_close(mf.dense_weights(made, q, k, causal=True), expected, "parity")
    v = rows([8.0], [2.0], [4.0], [100.0])
    assert_close(mf.attend(made, q, k, v, causal=True), rows([4.0], [4.0], [4.0], [1.0]), "parity")


def test_dpfp_by_hand() -> None:
    """r = (2, 0, 0, 3) for x = (2, -3): the neighbour before 2 is 3, going round."""
    x = torch.tensor([2.0, -3.0], dtype=torch.float64)
    one, two = dpfp(x, 1), dpfp(x, 2)
    assert_close(one / one.sum(), torch.tensor([1.0, 0, 0, 0]).double(), "parity")
    assert two.shape == (8,)
    assert_close(two / two.sum(), torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).double(), "parity")
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)  # r = (1, 2, 4, 0, 0, 0)
    expected = torch.tensor([0.0, 2, 8, 0, 0, 0, 0, 0, 4, 0, 0, 0]).double()  # r_i r_(i-1), then r_i r_(i-2)
    found = dpfp(x, 2)
    assert_close(found / found.sum(), expected / 14, "parity")


@pytest.mark.parametrize("options", [{}, {"nu": 2}, {"nu": 3}, {"map": "elu"}], ids=str)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 150])
def test_it_is_the_recurrence_of_the_paper(options: dict[str, object], n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    made = delta(**options)
    with torch.no_grad():
        made.beta_bias.add_(torch.tensor([-1.0, 2.0]))
        assert_close(mf.attend(made, q, k, v, causal=True), by_recurrence(made, q, k, v), "rounding")


def test_a_key_written_anew_gives_the_new_value() -> None:
    """With beta = 1 a key gives back exactly the value it was written with last; summed values would mix."""
    generator = torch.Generator().manual_seed(1)
    made = delta(1, 2)
    strength(made, 1 - 1e-15)
    keys = rows([1, 1], [1, -1], [-1, -1], [-1, 1])
    k = keys[:, :, torch.randint(0, 4, (200,), generator=generator)]
    v = torch.randn(1, 1, 200, 3, generator=generator, dtype=torch.float64)
    output = mf.attend(made, k, k, v, causal=True)  # each token asks for its own key
    assert_close(output, v, "rounding")


def test_many_writes_stay_bounded() -> None:
    """Every write shrinks what its key finds, so that no chain of corrections grows: a thousand steps, one
    direction, both signs of the answer.
    """
    n = 1500
    generator = torch.Generator().manual_seed(2)
    k = torch.randn(1, 2, 1, 8, generator=generator).expand(1, 2, n, 8)
    v = torch.randn(1, 2, n, 3, generator=generator)
    output = mf.attend(delta(dim=8).float(), k, k, v, causal=True)
    assert output.abs().max() <= v.abs().max()


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e30])
def test_dpfp_does_not_know_how_long_a_vector_is(size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, 20, 4, generator=generator) for _ in range(3))
    made = delta().float()
    strength(made, 0.5)
    expected = mf.attend(made, q, k, v, causal=True)
    inputs = [(size * x).requires_grad_() for x in (q, k)]
    output = mf.attend(made, *inputs, v, causal=True)
    assert_close(output, expected, "parity")
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(output.sum(), inputs))


def test_a_key_without_features_writes_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 1, 6, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    k[:, :, 2] = 0
    made = delta(1, 3)
    kept = [0, 1, 3, 4, 5]
    found = mf.attend(made, q, k, v, causal=True)
    expected = mf.attend(made, *(x[:, :, kept] for x in (q, k, v)), causal=True)
    assert_close(found[:, :, kept], expected, "parity")
    assert_close(
        found[:, :, 2], mf.attend(made, *(x[:, :, :3] for x in (q, k, v)), causal=True)[:, :, 2], "parity"
    )


def test_small_gradients_are_those_of_differences() -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(1, 1, 5, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    for options in ({"nu": 2}, {"map": "elu"}):
        made = delta(1, 3, **options)

        def run(*qkv: Tensor, made: Delta = made) -> Tensor:
            return mf.attend(made, *qkv[:3], causal=True)

        parameters = list(made.parameters())
        torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs] + parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "relu"}, "delta: map is unknown"),
        ({"nu": 0}, "delta: nu must be 1 or more, got 0"),
        ({"nu": -2}, "delta: nu must be 1 or more, got -2"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MapformersError, match=message):
        DeltaConfig(**options)  # type: ignore[arg-type]


def test_heads_too_small_for_the_map_are_refused() -> None:
    with pytest.raises(MapformersError, match=r"nu must be at most 3 for head size 2, got 4; .*map=elu"):
        delta(1, 2, nu=4)
    with pytest.raises(MapformersError, match="nu must be at most 0 for head size 1"):
        delta(1, 1)
    delta(1, 1, map="elu", nu=9)


def test_it_says_why_it_is_causal_only() -> None:
    with pytest.raises(MapformersError, match=r"bidirectional is not supported, since each key corrects"):
        mf.attention("delta", 16, 2)
