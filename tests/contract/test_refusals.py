"""What cannot be causal says why, in one line with a remedy."""

import pytest

import mapformers as mf
from mapformers.catalog import BLOCKS, MECHANISMS
from tests.contract import cases

REFUSE = [entry.card.name for entry in (*MECHANISMS, *BLOCKS) if entry.card.causal == "refuses"]  # type: ignore[attr-defined]
WHY = {
    "linformer": "compressed keys mix all positions",
    "nystrom": "landmarks are means over later tokens",
    "csalr": "landmarks are means over later tokens",
    "clustered": "later queries",
    "improved_clustered": "later queries",
    "bigbird": "its global tokens see the whole future",
    "etc": "its global rows see all tokens",
    "star": "its relay sees all tokens",
    "induced_set": "elements of a set see all",
    "perceiver": "latents read the whole sequence",
}


@pytest.mark.parametrize("name", REFUSE)
def test_causal_is_refused_with_its_reason(name: str) -> None:
    make = mf.block if name in cases.BLOCKS else mf.attention
    with pytest.raises(mf.MapformersError, match=f"^{name}: causal .*{WHY[name]}") as refused:
        make(name, cases.DIM, cases.HEADS, causal=True)
    assert "\n" not in str(refused.value)
