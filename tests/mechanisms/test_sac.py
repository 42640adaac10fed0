"""sac: edges by hand, the policy gradient against a sum over all graphs, seeds, a predictor that learns."""

import itertools

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.policy import MovingBaseline
from mapformers.core.scope import Scope
from mapformers.mechanisms.content.sac import Sac
from tests.mechanisms.test_by_hand import H, T, weights_by_probing
from tests.tolerances import assert_close

PREDICTORS = ("lstm", "parallel")


def sac(shape: Shape, seed: int = 3, **options: object) -> Sac:
    made = mf.mechanism("sac", **options).bind(shape, torch.Generator().manual_seed(seed)).double()
    assert isinstance(made, Sac)
    return made


def edges_of(made: Sac, k: Tensor, scope: Scope) -> Tensor:
    return made.predictor.choose(k, scope, slice(0, k.shape[2]), made._noise())


def test_by_hand() -> None:
    """The parallel predictor as a table: slot 0 likes what the token likes, slot 1 likes the opposite."""
    made = sac(Shape(1, 1, 2), edges=2, predictor="parallel").eval()
    with torch.no_grad():
        made.predictor.node.copy_(torch.eye(2)[None])
        made.predictor.slot.copy_(torch.stack([torch.eye(2), -torch.eye(2)])[None])
    k = (
        1e-9
        * torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)[None, None]
    )
    assert edges_of(made, k, Scope.of(True))[0, 0].tolist() == [[0, 0], [1, 0], [2, 1], [1, 2]]
    rows = [[1, 0, 0, 0], [H, H, 0, 0], [0, H, H, 0], [0, T, T, T]]
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(weights_by_probing(made, k, k, True), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, k, k, causal=True)[0, 0], expected, "parity", "definition")


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_log_probability_is_a_sum_over_steps(
    predictor: str, causal: bool, generator: torch.Generator
) -> None:
    """Two rows, the second with padding; every step by the formula."""
    made = sac(Shape(2, 2, 4), edges=2, predictor=predictor).train()
    k = torch.randn(2, 2, 7, 4, generator=generator, dtype=torch.float64)
    real = torch.tensor([[True] * 7, [False, True, True, False, True, True, True]])
    scope = Scope.of(causal, key_is_real=real)
    edges = edges_of(made, k, scope)
    found = made.predictor.log_prob(k, scope, edges)
    expected = torch.zeros((), dtype=torch.float64)
    for row, head in itertools.product(range(2), range(2)):
        nodes = k[row, head] @ made.predictor.node[head]
        tokens = real[row].nonzero()[:, 0].tolist()
        h = c = last = torch.zeros(4, dtype=torch.float64)
        for i, slot in itertools.product(tokens, range(2)):
            if predictor == "lstm":
                gates = (
                    torch.cat([nodes[i], last, h]) @ made.predictor.weight[head] + made.predictor.bias[head]
                )
                admit, forget, emit, new = gates.split(4)
                c = forget.sigmoid() * c + admit.sigmoid() * new.tanh()
                h = emit.sigmoid() * c.tanh()
            else:
                h = (
                    k[row, head, i] @ made.predictor.slot[head, slot]
                    + made.predictor.slot_bias[head, slot, 0]
                )
            seen = [j for j in tokens if not causal or j <= i]
            target = int(edges[row, head, i, slot])
            expected = expected + (nodes[seen] @ h / 2).log_softmax(0)[seen.index(target)]
            last = nodes[target]
    assert_close(found, expected, "parity")
    assert (edges[1, :, 0] == -1).all()


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_policy_gradient_is_that_of_the_expected_loss(predictor: str, generator: torch.Generator) -> None:
    """Three nodes, all graphs enumerated: E[(L - b) grad log p] = grad E[L], whatever the baseline b."""
    made = sac(Shape(1, 1, 2), edges=1, predictor=predictor)
    k = torch.randn(1, 1, 3, 2, generator=generator, dtype=torch.float64)
    scope, parameters = Scope.of(True), list(made.predictor.parameters())
    graphs = [torch.tensor([0, a, b])[None, None, :, None] for a in range(2) for b in range(3)]
    losses = torch.randn(len(graphs), generator=generator, dtype=torch.float64)
    logs = [made.predictor.log_prob(k, scope, graph) for graph in graphs]
    probabilities = torch.stack(logs).exp()
    assert_close(probabilities.sum(), torch.ones((), dtype=torch.float64), "parity")
    exact = torch.autograd.grad((probabilities * losses).sum(), parameters, retain_graph=True)
    for baseline in (0.0, 5.0):
        weights = probabilities.detach() * (losses - baseline)
        estimate = torch.autograd.grad(
            sum(w * log for w, log in zip(weights, logs, strict=True)), parameters, retain_graph=True
        )
        for a, b in zip(estimate, exact, strict=True):
            assert_close(a, b, "gradient", f"baseline {baseline}")


@pytest.mark.slow
def test_samples_follow_their_probabilities() -> None:
    """4,000 updates, each with noise of its own: five standard deviations."""
    made = sac(Shape(1, 1, 2), edges=1, predictor="parallel").train()
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)[None, None]
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[edges_of(made, k, Scope.of(True))[0, 0, 2, 0]] += 1
        made.update_centroids()
    for target in range(3):
        edges = torch.tensor([0, 0, target])[None, None, :, None]
        with torch.no_grad():
            others = made.predictor.log_prob(k[:, :, :2], Scope.of(True), edges[:, :, :2])
            p = float((made.predictor.log_prob(k, Scope.of(True), edges) - others).exp())
        assert abs(float(counts[target]) / 4000 - p) < 5 * (p * (1 - p) / 4000) ** 0.5


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_what_is_drawn_depends_on_seed_and_update_alone(predictor: str, generator: torch.Generator) -> None:
    k = torch.randn(1, 2, 30, 4, generator=generator, dtype=torch.float64)
    made, again, other = (sac(Shape(2, 2, 4), seed, predictor=predictor).train() for seed in (3, 3, 4))
    scope, before = Scope.of(True), torch.get_rng_state()
    first = edges_of(made, k, scope)
    assert torch.equal(first, edges_of(made, k, scope))
    assert torch.equal(first, edges_of(again, k, scope))
    other.load_state_dict({**made.state_dict(), "seed": other.seed})
    assert not torch.equal(first, edges_of(other, k, scope))
    assert torch.equal(first[:, :, :17], edges_of(made, k[:, :, :17], scope))
    made.update_centroids()
    assert not torch.equal(first, edges_of(made, k, scope))
    assert torch.equal(edges_of(made.eval(), k, scope), edges_of(again.eval(), k, scope))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_plan_and_definition_agree_in_training(predictor: str, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 19, 4, generator=generator, dtype=torch.float64)
    made = sac(Shape(2, 2, 4), edges=3, predictor=predictor).train()
    expected = mf.dense_weights(made, q, k, causal=True) @ v
    assert_close(mf.attend(made, q, k, v, causal=True), expected, "parity")


def test_the_baseline_is_a_mean_and_then_a_moving_average() -> None:
    baseline = MovingBaseline(decay=0.9).train()
    excess = [float(baseline(torch.tensor(x))) for x in (4.0, 2.0, 6.0)]
    assert excess == [0.0, -2.0, 3.0]
    for _ in range(200):
        baseline(torch.tensor(1.0))
    assert_close(baseline.mean, torch.tensor(1.0), "rounding")
    baseline.eval()(torch.tensor(9.0))
    assert_close(baseline.mean, torch.tensor(1.0), "rounding")


@pytest.mark.slow
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_predictor_learns_who_is_useful(predictor: str, generator: torch.Generator) -> None:
    """Only the first token carries the answer; its share of the edges drawn by the last ones rises."""
    made: Mechanism = sac(Shape(1, 1, 4), edges=1, predictor=predictor).train()
    k = torch.randn(8, 1, 6, 4, generator=generator, dtype=torch.float64)
    k[:, :, 0] = torch.tensor([2.0, -1.0, 0.5, 1.0])
    v = torch.zeros(8, 1, 6, 1, dtype=torch.float64)
    v[:, :, 0] = 1.0
    baseline, scope = MovingBaseline().train(), Scope.of(True)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.03)
    assert isinstance(made, Sac)

    def useful() -> float:
        return float((edges_of(made, k, scope)[:, 0, 1:, 0] == 0).double().mean())

    shares = []
    for step in range(300):
        output = mf.attend(made, k, k, v, causal=True)
        loss = (1 - output[:, 0, 1:, 0]).mean()
        policy = baseline(loss) * made.losses(k, k, scope)["edges"]
        optimiser.zero_grad()
        policy.backward()
        optimiser.step()
        made.update_centroids()
        if step < 10 or step >= 290:
            shares.append(useful())
    early, late = sum(shares[:10]) / 10, sum(shares[10:]) / 10
    assert early < 0.5 < 0.8 < late, (early, late)


def test_bad_input() -> None:
    with pytest.raises(mf.MapformersError, match="sac: edges must be 1 or more, got 0"):
        mf.mechanism("sac", edges=0)
    with pytest.raises(mf.MapformersError, match="sac: predictor"):
        mf.mechanism("sac", predictor="gru")
