"""mapformers inspect: the record of a model, the page, and what is refused."""

import base64
import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mapformers.cli.main import run
from mapformers.inspector.page import page_of
from mapformers.inspector.record import HeadRecord, LayerRecord, TextRecord, record_text
from mapformers.models import MapformerConfig, MapformerForCausalLM
from tests.train.tiny import LAYERS, command, write_text_file

NASTY = (
    b"<script>window.hacked=1</script> \"quotes\" 'and' &amp; </script><img src=x onerror=alert(1)>\n"
    + "שלום עולם مرحبا 🙂👩‍👩‍👧 e\u0301 \u202e reversed \u2028 line\n".encode()
    + b"zero \x00 bell \x07 invalid \xff\xfe\xc3( end\n"
)


def quiet(text: str) -> None:
    pass


def tiny_model() -> MapformerForCausalLM:
    config = MapformerConfig(
        vocab_size=256, hidden_size=16, num_attention_heads=2, intermediate_size=32, layers=LAYERS
    )
    return MapformerForCausalLM(config).eval()


def data_of(page: str, name: str) -> bytes:
    found = re.search(rf'<script type="application/octet-stream" id="{name}">([^<]*)</script>', page)
    assert found is not None
    return base64.b64decode(found[1])


def test_a_record_holds_clusters_bits_and_what_each_token_sees() -> None:
    made = record_text(tiny_model(), NASTY, 4, {"title": "t", "about": "a"}, quiet)
    n = len(NASTY)
    assert bytes(made.tokens) == NASTY
    assert made.bits[0] == 0
    assert made.bits[1:].mean() == pytest.approx(8, abs=1)  # nothing is learned yet
    band, mixed = made.layers
    assert [head.mechanism for head in mixed.heads] == ["routing", "band"]
    clusters = mixed.heads[0].clusters
    assert clusters is not None
    assert set(clusters.tolist()) <= {0, 1}
    assert mixed.heads[1].clusters is mixed.heads[1].looks_in is None
    looks_in = mixed.heads[0].looks_in
    assert looks_in is not None
    seen = mixed.keys[0] >= 0
    asked = np.broadcast_to(looks_in[:, None], mixed.keys[0].shape)[seen]
    assert seen.any()
    assert (clusters[mixed.keys[0][seen]] == asked).mean() > 0.4  # of two clusters that it looks into
    assert band.keys.shape == (2, n, 4)
    assert (band.keys <= np.arange(n)[:, None]).all(), "a causal layer sees what comes later"
    assert (np.arange(n)[:, None] - band.keys)[band.keys >= 0].max() <= 8
    assert band.divergence.shape == (2, 2)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    tokens = torch.tensor(list(NASTY))[None]
    with torch.no_grad():
        before = model(input_ids=tokens, use_cache=False).logits
    record_text(model, NASTY, 4, {}, quiet)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, before, rtol=0, atol=0)
    assert not any("attend" in vars(part) for part in model.modules())


def test_the_page_holds_the_data_and_no_text_as_markup() -> None:
    facts = {"title": "</script><b>title", "about": "a <i>run</i>\u2028"}
    made = record_text(tiny_model(), NASTY, 4, facts, quiet)
    page = page_of(made)
    assert data_of(page, "tokens") == NASTY
    weights = np.frombuffer(data_of(page, "weights-1"), np.uint8).reshape(2, len(NASTY), 4)
    np.testing.assert_array_equal(weights, np.rint(255 * made.layers[1].weights))
    keys = np.frombuffer(data_of(page, "keys-0"), "<u2").reshape(2, len(NASTY), 4).astype(int)
    np.testing.assert_array_equal(np.where(keys == 65535, -1, keys), made.layers[0].keys)
    assert "window.hacked" not in page
    assert "<b>title" not in page
    said = re.search(r'<script type="application/json" id="facts">([^<]*)</script>', page)
    assert said is not None
    assert json.loads(said[1])["title"] == facts["title"]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_long_texts_have_wide_indices_and_stay_small() -> None:
    n = 70_000
    head = HeadRecord("routing", 1.0, 1.0, *[np.zeros(n, np.int32)] * 2)
    keys = np.full((1, n, 2), n - 1)
    layer = LayerRecord("layer", keys, np.full((1, n, 2), 0.5), np.zeros((1, 1)), (head,))
    made = TextRecord(np.zeros(n, np.uint8), np.zeros(n, np.float32), (layer,), {"title": "", "about": ""})
    page = page_of(made)
    assert np.frombuffer(data_of(page, "keys-0"), "<u4").max() == n - 1
    assert len(page) < 40 * n


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run(command(write_text_file(folder), folder / "run", "--max-steps", "2")) == 0
    return folder / "run"


@pytest.mark.slow
def test_the_command_writes_a_page(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "nasty.txt"
    text.write_bytes(NASTY)
    assert run(["inspect", str(trained), "--text", str(text), "--output", str(tmp_path / "p.html")]) == 0
    shown = capsys.readouterr().out
    assert "bits per byte" in shown
    assert max(map(len, shown.splitlines())) <= 160
    assert data_of((tmp_path / "p.html").read_text(), "tokens") == NASTY
    assert run(["inspect", str(trained), "--tokens", "10:60"]) == 0
    assert len(data_of((trained / "inspect.html").read_text(), "tokens")) == 50
    for words, said in (
        (["--text", str(tmp_path / "none.txt")], "must be readable"),
        (["--tokens", "5"], "must be START:END"),
        (["--tokens", "5:6"], "must be START:END"),
        (["--keep", "0"], "--keep must lie in 1..1024"),
    ):
        assert run(["inspect", str(trained), *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    (tmp_path / "empty.txt").write_bytes(b"")
    assert run(["inspect", str(trained), "--text", str(tmp_path / "empty.txt")]) == 2
    assert "2 bytes or more" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path)]) == 2
    assert "must hold config.yaml" in capsys.readouterr().err
