"""Tones: the order is the class, and what is heard at any time without its place says nothing of it."""

import pytest
import torch
from torch import Tensor

from mapformers.tasks.tones import Tones, TonesBatch

RATE, LENGTH, WINDOW = 4000, 4000, 100
PITCHES = 220.0 * 2 ** (torch.arange(3) / 2)


@pytest.fixture(scope="module")
def made() -> TonesBatch:
    return Tones(samples=LENGTH, rate=RATE).batch(1200, torch.Generator().manual_seed(0))


def powers(samples: Tensor) -> Tensor:
    """[B, windows, tones] log of the power of each pitch in windows as short as a quarter of a pause."""
    parts = samples.unflatten(1, (-1, WINDOW))  # [B, windows, WINDOW]
    time = torch.arange(WINDOW) / RATE
    waves = torch.polar(torch.ones(3, WINDOW), 2 * torch.pi * PITCHES[:, None] * time)
    return torch.einsum("bnw,tw->bnt", parts.to(waves.dtype), waves).abs().add(1.0).log()


def judged(features: Tensor, target: Tensor) -> float:
    """Accuracy on the second half of a linear classifier, fitted by least squares to the first half."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    y = torch.nn.functional.one_hot(target).double()
    half = len(x) // 2
    ridge = torch.eye(x.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(x[:half].T @ x[:half] + ridge, x[:half].T @ y[:half])
    return float(((x[half:] @ weights).argmax(1) == target[half:]).double().mean())


def test_windows_without_their_places_are_at_chance(made: TonesBatch) -> None:
    """Mean, spread and largest power of each pitch over all windows: a sixth, as for guessing."""
    heard = powers(made.samples)
    pooled = torch.cat([heard.mean(1), heard.std(1), heard.amax(1)], 1)
    assert judged(pooled, made.target) < 1 / 6 + 0.07


def test_windows_in_their_order_tell_the_class(made: TonesBatch) -> None:
    heard = powers(made.samples).unflatten(1, (10, -1)).mean(2)  # [B, 10, tones]
    assert judged(heard.flatten(1), made.target) > 0.9


def test_classes_are_as_frequent_and_samples_bounded(made: TonesBatch) -> None:
    counts = torch.bincount(made.target, minlength=6)
    assert int(counts.min()) > 140
    assert int(counts.max()) < 260
    assert made.samples.dtype == torch.float32
    assert float(made.samples.abs().max()) < 1.5


def test_silence_before_the_first_tone_differs() -> None:
    task = Tones(samples=LENGTH, rate=RATE, noise=0.0)
    samples = task.batch(200, torch.Generator().manual_seed(0)).samples
    first = (samples.abs() > 1e-6).int().argmax(1).double()
    share = first / LENGTH - task.pause  # of the silence that differs
    assert 0.15 < float(share.max()) <= 0.2
    assert 0 <= float(share.min()) < 0.05
    assert 0.08 < float(share.mean()) < 0.12


@pytest.mark.parametrize(("tones", "classes"), [(2, 2), (3, 2), (4, 24), (4, 5)])
def test_some_of_the_orders(tones: int, classes: int) -> None:
    task = Tones(samples=256, rate=RATE, tones=tones, classes=classes)
    target = task.batch(500, torch.Generator().manual_seed(0)).target
    assert set(target.tolist()) == set(range(classes))


def test_phases_differ_and_noise_is_as_loud_as_said() -> None:
    quiet = Tones(samples=256, rate=RATE, silence=0.0, pause=0.0, noise=0.0).batch(
        50, torch.Generator().manual_seed(0)
    )
    assert float(quiet.samples[:, 0].std()) > 0.2
    loud = Tones(samples=8000, rate=RATE, tones=2, classes=2, silence=0.0, pause=0.32, noise=0.3)
    samples = loud.batch(8, torch.Generator().manual_seed(0)).samples
    assert float(samples[:, :2500].std()) == pytest.approx(0.3, rel=0.05)  # a pause holds noise alone
