"""Presets: strict, typed, and each one a model that can be built."""

import itertools

import pytest
import yaml

from mapformers.core.errors import MapformersError
from mapformers.train.folder import config_text
from mapformers.train.models import config_of, decodes, parameter_count
from mapformers.train.presets import Preset, at_stage, load_preset, override, preset_from, preset_names

ROUTING = ("routing-enwik8", "routing-imagenet64", "routing-pg19", "routing-wikitext103")
STUDIES = (
    "adaptive-span-small",
    "audio-classification",
    "capsule-small",
    "forecast",
    "image-classification",
    "image-generation",
    "lazyformer-small",
    "listops",
    "masked-bytes",
    "mqar",
    "multi-query-small",
    "passkey",
    "perceiver-ar",
    "pathfinder",
    "realformer-small",
    "talking-heads-small",
    "text-classification",
    "translation",
)
PUBLISHED = (
    "axial-imagenet64",
    "bp-enwik8",
    "informer-etth1",
    "listops-lra",
    "longformer-text8",
    "perceiver-bytes",
    "perceiver-imagenet",
    "reformer-enwik8",
    *ROUTING,
    "sparse-enwik8",
    "tdmca-text",
)


def test_the_presets_there_are() -> None:
    assert preset_names() == ("demo", "laptop", *sorted((*STUDIES, *PUBLISHED)))


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_is_a_model(name: str) -> None:
    preset = load_preset(name)
    config = config_of(preset)
    assert preset.task != "language-model" or config.max_position_embeddings == preset.data.context
    assert parameter_count(preset) > 50_000
    assert preset.summary.endswith(".")


@pytest.mark.parametrize("name", ROUTING)
def test_published_presets_state_their_deviations(name: str) -> None:
    text = " ".join(load_preset(name).deviations)
    for told in ("strictly causal", "AdamW", "Rotary", "shared centroids"):
        assert told in text


@pytest.mark.parametrize(
    ("name", "layers", "sizes", "context"),
    [
        ("bp-enwik8", 12, (512, None, 8), 8192),
        ("longformer-text8", 12, (512, 2048, 8), 2048),
        ("reformer-enwik8", 12, (768, None, 8), 65536),
        ("sparse-enwik8", 30, (512, 2048, 8), 12288),
        ("routing-enwik8", 12, (1024, 3072, 8), 8192),
        ("routing-wikitext103", 14, (1024, 3072, 16), 4096),
        ("routing-imagenet64", 24, (1024, 2048, 16), 12288),
        ("routing-pg19", 22, (1032, 4096, 8), 8192),
    ],
)
def test_published_sizes(name: str, layers: int, sizes: tuple[int, int | None, int], context: int) -> None:
    preset = load_preset(name)
    config = config_of(preset)
    assert len(config.layers) == layers
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == sizes
    assert preset.data.context == context


@pytest.mark.parametrize(
    ("name", "millions"),
    [("bp-enwik8", 38), ("sparse-enwik8", 95), ("perceiver-bytes", 201), ("perceiver-imagenet", 45)],
)
def test_published_numbers_of_parameters(name: str, millions: int) -> None:
    assert round(parameter_count(load_preset(name)) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "expected"), [("demo", True), ("bp-enwik8", True), ("reformer-enwik8", True)]
)
def test_whether_a_preset_decodes(name: str, expected: bool) -> None:
    assert decodes(config_of(load_preset(name))) is expected


def test_the_stages_of_longformer_double_windows_and_halve_the_rate() -> None:
    recipe = load_preset("longformer-text8")
    stages = [at_stage(recipe, number) for number in range(1, 6)]
    assert [stage.data.context for stage in stages] == [2048, 4096, 8192, 16384, 23040]
    bottoms = [int(config_of(stage).layers[0]["attention"].split("=")[1].rstrip(")")) for stage in stages]
    assert bottoms == [32, 64, 128, 256, 512]
    rates = [stage.optimiser.learning_rate for stage in stages]
    assert all(after == before / 2 for before, after in itertools.pairwise(rates))


def test_local_and_compressed_layers_take_turns() -> None:
    """L M L M L with blocks of 256 and cells of 3, and the whole model decodes."""
    config = config_of(load_preset("tdmca-text"))
    local, compressed = "block_local(block=256)", "memory_compressed(stride=3)"
    found = [layer["attention"] for layer in config.layers]
    assert found == [local, compressed, local, compressed, local]
    assert decodes(config)


def test_stages_change_what_they_name() -> None:
    plain = {"name": "x", "data": {"context": 64}, "stages": [{}, {"data": {"context": 128}}]}
    recipe = preset_from(plain)
    first, second = at_stage(recipe, 1), at_stage(recipe, 2)
    assert (first.data.context, second.data.context) == (64, 128)
    assert (first.stages, second.stages) == ((), ())
    assert at_stage(load_preset("demo"), 1) == load_preset("demo")
    with pytest.raises(MapformersError, match=r"--stage: must lie in 1..2 for x, got 3"):
        at_stage(recipe, 3)
    with pytest.raises(MapformersError, match="nearest: data"):
        at_stage(preset_from({**plain, "stages": [{"dta": {}}]}), 1)


def test_overrides_are_typed() -> None:
    settings = [
        "data.context=64",
        "optimiser.learning_rate=1e-4",
        "optimiser.betas=[0.8, 0.9]",
        "data.train_bytes=null",
        "training.activation_checkpointing=true",
        "model.layers.0.attention=band(window=4)",
        "data.source=my file.txt",
    ]
    preset = override(load_preset("demo"), settings)
    assert preset.data.context == 64
    assert preset.optimiser.learning_rate == 1e-4
    assert preset.optimiser.betas == (0.8, 0.9)
    assert preset.data.train_bytes is None
    assert preset.training.activation_checkpointing is True
    assert preset.model["layers"][0] == {"attention": "band(window=4)"}
    assert preset.model["layers"][1] != preset.model["layers"][0]
    assert preset.data.source == "my file.txt"


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("data.contxt=3", "nearest: context"),
        ("dta.context=3", "nearest: data"),
        ("data.context=many", "data.context must be int"),
        ("data.context=1.5", "data.context must be int"),
        ("data.context=true", "data.context must be int"),
        ("data.context=1", "context must be 2 or more"),
        ("data.batch=0", "batch must be 1 or more"),
        ("optimiser.learning_rate=0", "learning_rate must be > 0"),
        ("optimiser.learning_rate=fast", "learning_rate must be float"),
        ("optimiser.betas=[1]", "betas must be"),
        ("optimiser.schedule=cosin", "nearest: cosine"),
        ("training.seed=-1", "seed must lie in"),
        ("training.precision=float16", "nearest: "),
        ("model.layers.9.attention=full", "index below 4"),
        ("model.layers=[]", "list of layers"),
        ("data.context.x=1", "leads into a value"),
        ("data", "needs key=value"),
        ("data.context={", "must be YAML"),
    ],
)
def test_bad_settings_are_named(setting: str, rule: str) -> None:
    with pytest.raises(MapformersError, match=rule) as caught:
        override(load_preset("demo"), [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("model.hiden_size=64", "nearest: hidden_size"),
        ("model.hidden_size=big", "model.hidden_size must be int"),
        ("model.num_attention_heads=5", "multiple of num_attention_heads"),
        ("model.layers.0.attention=bnd", "nearest: band"),
        ("model.layers.0.attention=band(windw=3)", "nearest: window"),
        ("model.layers.0.attention=band(window=-1)", "window"),
    ],
)
def test_bad_models_are_named(setting: str, rule: str) -> None:
    with pytest.raises(MapformersError, match=rule):
        config_of(override(load_preset("demo"), [setting]))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(MapformersError, match="nearest: demo"):
        load_preset("dmo")


@pytest.mark.parametrize("name", preset_names())
def test_config_text_is_read_back_the_same(name: str) -> None:
    preset = load_preset(name)
    again: Preset = preset_from(yaml.safe_load(config_text(preset)))
    assert again == preset
