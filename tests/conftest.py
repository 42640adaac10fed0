"""What every test shares: no network, one thread per worker, poisoned memory, explicit randomness."""

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from torch import Tensor

# Lets torch list the functions that it redirects, before `poisoned_memory` replaces one of them.
with torch.device("meta"):
    torch.empty(1)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh source of random numbers, the same in every test. Tests do not draw from the global one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def global_random_untouched() -> Iterator[None]:
    """Fails the test when anything in it drew from torch's global random state, or set it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state of torch was used"


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that reading it before it is written shows.

    A test that must not have it is marked clean_memory.
    """
    if request.node.get_closest_marker("clean_memory") is not None:
        return
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def empty(*args: Any, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        if made.is_floating_point() and made.device.type != "meta" and not torch.compiler.is_compiling():
            with torch.no_grad():
                made.fill_(float("nan"))
        return made

    return empty
