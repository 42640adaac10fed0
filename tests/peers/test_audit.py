"""The audit of well-known packages: the leaks that it must find, with their numbers."""

import pytest

from mapformers.measure.audits import Question, audit_module
from mapformers.measure.peers import PEERS, version_of

pytestmark = pytest.mark.peers
LEAKING = {"routing-transformer": 0.5, "reformer-pytorch": 0.5, "performer-pytorch": 0.0}
STRICT = ("linear-attention-transformer", "local-attention")


def target_of(package: str) -> str:
    if version_of(package) is None:
        pytest.skip(f"{package} is not installed: make full installs it")
    return next(peer.target for peer in PEERS if peer.package == package)


@pytest.mark.parametrize(("package", "share"), LEAKING.items())
def test_published_causal_routing_hashing_and_features_leak_by_selection(package: str, share: float) -> None:
    report = audit_module(Question(target_of(package), {})).report
    rows = {row.name: row for row in report.rows}
    assert rows["future: gradient"].passed, "values do not come from the future"
    worst = report.families["future"]
    assert not worst.passed
    assert worst.measured > 1e-5
    moved = float(worst.meaning.partition("%")[0]) / 100
    assert moved > share
    assert report.explanations[0].startswith("The selection leaks")


@pytest.mark.parametrize("package", STRICT)
def test_packages_that_are_strict_pass(package: str) -> None:
    report = audit_module(Question(target_of(package), {})).report
    assert report.passed, str(report)


def test_a_pseudo_inverse_started_for_the_whole_batch_mixes_rows() -> None:
    report = audit_module(Question(target_of("nystrom-attention"), {})).report
    assert not report.families["batch"].passed
