"""Centroids: moved by an explicit update, by all the data and nothing but the data, nowhere else."""

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.carry import Carry
from mapformers.mechanisms.content.kmeans import DEAD_SHARE, KMeans
from tests.contract import cases
from tests.tolerances import assert_close

SPEC = "routing(clusters=4, window=6)"


def layer(**options: object) -> MultiHeadAttention:
    return mf.attention(SPEC, cases.DIM, cases.HEADS, causal=True, **options).double()


def kmeans_of(attention: MultiHeadAttention) -> KMeans:
    return attention.mechanisms[0].kmeans


def inputs(count: int, batch: int = 2, n: int = 24) -> list[Tensor]:
    return [
        cases.draw((batch, n, cases.DIM), torch.Generator().manual_seed(i), "clustered") for i in range(count)
    ]


def state_of(attention: MultiHeadAttention) -> dict[str, Tensor]:
    return copy.deepcopy(dict(kmeans_of(attention).named_buffers()))


def same(a: MultiHeadAttention, b: MultiHeadAttention) -> None:
    for name, tensor in state_of(a).items():
        if tensor.dtype.is_floating_point:
            assert_close(tensor, state_of(b)[name], "rounding", name)
        else:
            assert torch.equal(tensor, state_of(b)[name]), name


def changed(attention: MultiHeadAttention, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(tensor, before[name]) for name, tensor in state_of(attention).items())


def trained(attention: MultiHeadAttention, steps: int = 3) -> MultiHeadAttention:
    for x in inputs(steps):
        attention(x)
        attention.update_centroids()
    return attention


def test_a_forward_never_moves_the_centroids() -> None:
    attention = layer()
    before = state_of(attention)
    for x in inputs(3):
        attention(x)
    assert not changed(attention, before)
    attention.update_centroids()
    assert changed(attention, before)


def test_evaluation_leaves_no_trace() -> None:
    """Neither buffers nor statistics: an update after evaluation moves nothing, on a fresh model too."""
    for attention in (layer(), trained(layer())):
        before = state_of(attention)
        attention.eval()
        for x in inputs(2):
            attention(x)
        state = attention.init_state(2)
        attention.step(inputs(1)[0], state)
        attention.update_centroids()
        assert not changed(attention, before)


def test_updating_twice_is_updating_once() -> None:
    attention = trained(layer())
    before = state_of(attention)
    attention.update_centroids()
    assert not changed(attention, before)


def test_the_first_update_starts_from_the_data() -> None:
    """Clusters of the data, not random directions: every centroid has members and lies close to them."""
    attention = layer()
    (x,) = inputs(1, batch=4)
    assert not kmeans_of(attention).initialised
    attention(x)
    attention.update_centroids()
    kmeans = kmeans_of(attention)
    assert kmeans.initialised
    _, k, _ = attention.project(x, x)
    assert kmeans.similarity(k).amax(-1).mean() > 0.7
    assert_close(kmeans.centroids.norm(dim=-1), torch.ones(cases.HEADS, 4).double(), "rounding")


def test_micro_batches_add_up_to_one_batch() -> None:
    """Also in the first update, and over several steps."""
    whole, parts = layer(), layer()
    for x in inputs(3, batch=4):
        whole(x)
        whole.update_centroids()
        for part in x.split(1):
            parts(part)
        parts.update_centroids()
        same(whole, parts)


def test_padding_does_not_count() -> None:
    """Rows with padding move the centroids like rows without it, whatever the padding holds."""
    plain, padded = layer(), layer()
    for x in inputs(3):
        plain(x)
        plain.update_centroids()
        junk = 1e3 * cases.draw((2, 24, cases.DIM), torch.Generator().manual_seed(50), "clustered")
        real = torch.arange(48).expand(2, -1) >= 24
        padded(torch.cat([junk, x], 1), key_is_real=real)
        padded.update_centroids()
        assert_close(kmeans_of(padded).share, kmeans_of(plain).share, "rounding")
        assert_close(kmeans_of(padded).bias, kmeans_of(plain).bias, "rounding")


def test_padding_moves_no_centroid_after_the_start() -> None:
    plain = trained(layer())
    padded = copy.deepcopy(plain)
    x = inputs(4)[3]
    plain(x)
    padded(torch.cat([1e3 + x, x], 1), key_is_real=torch.arange(48).expand(2, -1) >= 24)
    for attention in (plain, padded):
        attention.update_centroids()
    same(plain, padded)


def test_tokens_without_a_direction_do_not_start_clusters() -> None:
    attention, x = layer(), torch.zeros(2, 24, cases.DIM, dtype=torch.float64)
    attention(x)
    attention.update_centroids()
    assert not kmeans_of(attention).initialised
    trained(attention)
    assert kmeans_of(attention).initialised


def test_a_batch_of_padding_alone_moves_nothing() -> None:
    for attention in (layer(), trained(layer())):
        before = state_of(attention)["centroids"]
        attention(inputs(1)[0], key_is_real=torch.zeros(2, 24, dtype=torch.bool))
        attention.update_centroids()
        after = state_of(attention)["centroids"]
        assert after.isfinite().all()
        assert_close(after, before, "rounding")


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_counts_once(reentrant: bool) -> None:
    """Only the first micro-batch is checkpointed, so counting it twice would tilt the mean."""
    plain, checkpointed = layer(), layer()
    for x in inputs(4, batch=4):
        first, second = (part.clone().requires_grad_() for part in x.split(2))
        plain(first).sum().backward()
        checkpoint(checkpointed, first, use_reentrant=reentrant).sum().backward()
        for attention in (plain, checkpointed):
            attention(second)
            attention.update_centroids()
        same(plain, checkpointed)


def test_the_update_is_the_formula() -> None:
    """mu <- normalise(decay mu + (1 - decay) mean direction of the keys in it)."""
    attention = trained(layer())
    kmeans, x = kmeans_of(attention), inputs(4)[3]
    mu, bias = kmeans.centroids.clone(), kmeans.bias.clone()
    _, k, _ = attention.project(x, x)
    attention(x)
    attention.update_centroids()
    for head in range(cases.HEADS):
        vectors = k[:, head].flatten(0, 1)
        vectors = vectors - vectors.mean(-1, keepdim=True)
        vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        best = (vectors @ mu[head].T + bias[head]).argmax(-1)
        for cluster in range(4):
            members = vectors[best == cluster]
            if len(members):
                mean = members.sum(0) / members.sum(0).norm()
                moved = 0.99 * mu[head, cluster] + 0.01 * mean
                assert_close(kmeans.centroids[head, cluster], moved / moved.norm(), "parity")


def test_the_load_bias_helps_empty_clusters() -> None:
    attention = trained(layer())
    kmeans, x = kmeans_of(attention), inputs(4)[3]
    bias = kmeans.bias.clone()
    _, k, _ = attention.project(x, x)
    best = kmeans.biased(kmeans.similarity(k)).argmax(-1)  # [B, H, N]
    counts = torch.nn.functional.one_hot(best, 4).sum((0, 2)).double()
    attention(x)
    attention.update_centroids()
    change = kmeans.bias - bias
    most, least = counts.argmax(-1, keepdim=True), counts.argmin(-1, keepdim=True)
    assert (change.gather(1, least) > change.gather(1, most)).all()


def test_dead_clusters_revive() -> None:
    attention = trained(layer())
    kmeans = kmeans_of(attention)
    kmeans.centroids[:, 0] = -kmeans.centroids[:, 1:].mean(1)
    kmeans.bias[:, 0] = -3.0  # nothing comes here any more
    kmeans.share[:, 0] = DEAD_SHARE / 4 / 10
    assert attention.telemetry()["dead_clusters"] == 1
    (x,) = inputs(1, batch=4)
    attention(x)
    attention.update_centroids()
    assert attention.telemetry()["dead_clusters"] == 0
    assert_close(kmeans.bias[:, 0], torch.zeros(cases.HEADS).double(), "rounding")
    _, k, _ = attention.project(x, x)
    best = kmeans.biased(kmeans.similarity(k)).argmax(-1)
    assert all((best[:, head] == 0).any() for head in range(cases.HEADS)), "a revived cluster has no member"


def test_centroids_stay_float32_in_a_narrow_model() -> None:
    """0.999 x 1 rounds to 1 in bfloat16: a moving average would stand still."""
    for narrow in (lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.bfloat16)):
        attention = narrow(mf.attention(SPEC, cases.DIM, cases.HEADS, causal=True))
        assert attention.project.query.weight.dtype in (torch.bfloat16, torch.float16)
        floats = [b for b in kmeans_of(attention).buffers() if b.dtype.is_floating_point]
        assert {b.dtype for b in floats} == {torch.float32}
    attention = mf.attention(SPEC, cases.DIM, cases.HEADS, causal=True).bfloat16()
    for x in inputs(3):
        attention(x.bfloat16())
        before = kmeans_of(attention).centroids.clone()
        attention.update_centroids()
        assert not torch.equal(before, kmeans_of(attention).centroids)


def test_the_state_dict_is_whole() -> None:
    """A loaded layer goes on exactly like the one that was saved."""
    saved = trained(layer())
    loaded = layer(seed=3)
    loaded.load_state_dict(saved.state_dict())
    for x in inputs(6)[3:]:
        for attention in (saved, loaded):
            attention(x)
            attention.update_centroids()
        same(saved, loaded)


def test_an_unfinished_step_is_not_saved() -> None:
    attention = trained(layer())
    attention(inputs(1)[0])
    other = copy.deepcopy(attention)
    before = state_of(other)
    other.update_centroids()
    assert not changed(other, before)


@pytest.mark.parametrize("membership", ["random", "lsh"])
def test_baselines_never_move(membership: str) -> None:
    attention = mf.attention(f"routing(clusters=4, membership={membership})", cases.DIM, cases.HEADS).double()
    before = state_of(attention)
    trained(attention)
    assert not changed(attention, before)


def test_the_commitment_loss_is_the_distance_to_the_nearest_centroid() -> None:
    """Mean over real tokens of |x^ - mu|^2 = 2 - 2 cos, queries plus keys; only in training."""
    attention = trained(layer())
    (x,) = inputs(1)
    real = cases.mask("holes", 24, torch.Generator().manual_seed(0))
    loss = attention.attend(x, Carry(key_is_real=real)).losses["commitment"]
    q, k, _ = attention.project(x, x)
    expected = 0.0
    for vectors in (q, k):
        unit = vectors - vectors.mean(-1, keepdim=True)
        unit = unit / unit.norm(dim=-1, keepdim=True)
        distance = (
            (unit.unsqueeze(-2) - kmeans_of(attention).centroids[None, :, None]).square().sum(-1).amin(-1)
        )
        expected = expected + distance.transpose(0, 1)[:, real].mean()
    assert_close(loss, expected, "parity")
    assert attention.eval().attend(x).losses == {}


def test_telemetry_is_readable() -> None:
    numbers = trained(layer()).telemetry()
    assert numbers.keys() == {"occupancy_entropy", "dead_clusters", "centroid_drift", "mean_horizon"}
    assert 0 <= numbers["occupancy_entropy"] <= 1 + 1e-9
    assert 0 < numbers["mean_horizon"] <= 24


PROCESS = """
    import sys, torch, torch.distributed as dist, mapformers as mf
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    attention = mf.attention("routing(clusters=4, window=6)", 32, 4, causal=True).double()
    for step, x in enumerate(torch.load(f"{folder}/inputs.pt", weights_only=True)):
        x = x[: 3] if rank == 0 else x[3:]            # ranks of unequal size
        for part in x.split(1 + rank):                # and of unequal micro-batches
            attention(part)
        attention.update_centroids()
    torch.save(attention.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Two gloo processes with parts of a batch hold the same centroids as one with the whole of it."""
    batches = inputs(4, batch=5)
    torch.save(batches, tmp_path / "inputs.pt")
    script = tmp_path / "process.py"
    script.write_text(textwrap.dedent(PROCESS), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), tmp_path], env=environment) for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    alone = layer()
    for x in batches:
        alone(x)
        alone.update_centroids()
    for rank in (0, 1):
        state = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, tensor in alone.state_dict().items():
            assert_close(state[name].double(), tensor.double(), "rounding", f"{name} of rank {rank}")


def test_nothing_is_summed_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("all_reduce without a process group")

    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    trained(layer())
