"""Saving and loading: every bit comes back, and whatever is not a whole checkpoint of ours is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import mapformers.hub  # noqa: F401  registers the classes
from mapformers import MapformersError
from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.checkpoint import INDEX, WEIGHTS
from mapformers.models.config import MapformerConfig
from mapformers.models.stack import MapformerModel

from .tiny import EVERYTHING, model_of, tokens

VARIANTS = [
    {},
    {"layers": EVERYTHING, "norm": "post"},
    {"embedding_size": 12},
    {"embedding_size": 12, "tie_word_embeddings": False},
]


def same_state(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_bit_comes_back(tmp_path: Path, fields: dict[str, Any], dtype: torch.dtype) -> None:
    model, ids = model_of(**fields).to(dtype), tokens(2, 12)
    model.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    again = MapformerForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_state(model, again)
    assert not again.training
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == model.config.tie_word_embeddings
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


def test_what_is_written(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", WEIGHTS}
    held = load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" not in held
    assert (
        {name for name in held if "kmeans" in name}
        == {n for n in model.state_dict() if "kmeans" in n}
        != set()
    )


def test_shards(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / INDEX).is_file()
    assert same_state(model, MapformerForCausalLM.from_pretrained(tmp_path))
    shard = sorted(tmp_path.glob("model-0*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(MapformersError, match=shard.name):
        MapformerForCausalLM.from_pretrained(tmp_path)


def test_saving_again_leaves_no_old_shards(tmp_path: Path) -> None:
    model_of(initializer_seed=1).save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "notes.txt").write_text("kept")
    model = model_of(initializer_seed=2)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*safetensors*")] == [WEIGHTS]
    assert (tmp_path / "notes.txt").is_file()
    assert same_state(model, MapformerForCausalLM.from_pretrained(tmp_path))


def test_a_full_disk_spares_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = model_of(initializer_seed=1)
    good.save_pretrained(tmp_path)

    def fail(held: Any, path: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(MapformersError, match="No space left"):
        model_of(initializer_seed=2).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", WEIGHTS}
    assert same_state(good, MapformerForCausalLM.from_pretrained(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(MapformersError, match="must be a folder"):
        good.save_pretrained(tmp_path / "file")


def test_auto_classes(tmp_path: Path) -> None:
    model, ids = model_of(EVERYTHING), tokens(2, 12)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MapformerConfig)
    language_model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(language_model, MapformerForCausalLM)
    assert same_state(model, language_model)
    stack = AutoModel.from_pretrained(tmp_path)
    assert isinstance(stack, MapformerModel)
    assert torch.equal(stack(ids).last_hidden_state, model.model(ids).last_hidden_state)
    assert isinstance(AutoModelForCausalLM.from_config(model.config), MapformerForCausalLM)


def test_the_stack_of_a_model_with_its_own_head(tmp_path: Path) -> None:
    model = model_of(embedding_size=12, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    assert same_state(MapformerModel.from_pretrained(tmp_path), model.model)


def test_narrower_types_keep_centroids_wide(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path)
    half = MapformerForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.embed_tokens.weight.dtype == torch.bfloat16
    mine = dict(model.named_buffers())
    assert all(torch.equal(mine[name], buffer) for name, buffer in half.named_buffers() if "kmeans" in name)
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    types = {b.dtype for name, b in fresh.named_buffers() if "kmeans" in name and b.is_floating_point()}
    assert types == {torch.float32}
    assert torch.isfinite(fresh(tokens(1, 8)).logits).all()


def test_loading_information_is_still_to_be_had(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    _, information = MapformerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not information["missing_keys"]


def change(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        edit(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def edit_config(**fields: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return damage


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


NORM = "model.norm.weight"  # "norm.weight" to the stack alone
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json must exist"),
    "half a config": (truncate("config.json", 0.5), "config.json must be readable JSON"),
    "a list for a config": (lambda folder: (folder / "config.json").write_text("[]"), "JSON object"),
    "another model": (edit_config(model_type="llama"), "llama"),
    "an unknown field": (edit_config(hiden_size=3), "hidden_size"),
    "an unknown mechanism": (edit_config(layers=[{"attention": "bandd"}]), "band"),
    "a field of a wrong type": (edit_config(hidden_size="x"), "hidden_size"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "got no weights"),
    "half the weights": (truncate(WEIGHTS, 0.5), WEIGHTS),
    "no bytes": (truncate(WEIGHTS, 0.0), WEIGHTS),
    "a few bytes": (truncate(WEIGHTS, 0.001), WEIGHTS),
    "pickled weights": (pickle_instead, "pytorch_model.bin, which can run code"),
    "a missing weight": (change(lambda held: held.pop(NORM)), "1 missing, the first is "),
    "an extra weight": (
        change(lambda held: held.update(other=torch.ones(2))),
        "unexpected, the first is other",
    ),
    "a wrong shape": (change(lambda held: held.update({NORM: torch.ones(7)})), "1 mismatched, the first is "),
    "other sizes": (edit_config(hidden_size=64), "mismatched, the first is"),
    "more layers": (edit_config(layers=[{"attention": "full"}] * 4), "missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("load", [MapformerForCausalLM.from_pretrained, MapformerModel.from_pretrained])
def test_damaged_and_foreign_checkpoints_are_named(
    tmp_path: Path, damage: str, load: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    model_of().save_pretrained(tmp_path)
    harm, says = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(MapformersError) as caught:
        load(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caplog.records


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MapformersError, match="nowhere"):
        MapformerForCausalLM.from_pretrained(tmp_path / "nowhere", local_files_only=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(MapformersError, match="must be a folder"):
        MapformerForCausalLM.from_pretrained(tmp_path / "file")


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"ignore_mismatched_sizes": True}])
def test_loading_by_halves_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    model_of().save_pretrained(tmp_path)
    with pytest.raises(MapformersError, match=next(iter(options))):
        MapformerForCausalLM.from_pretrained(tmp_path, **options)
