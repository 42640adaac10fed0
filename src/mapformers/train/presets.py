"""Presets: one run as data. Strict: an unknown key or a wrong type raises MapformersError and names the
nearest keys.
"""

import copy
import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, TypeVar

import yaml

from mapformers.build import mechanism
from mapformers.core.errors import MapformersError, require, require_known
from mapformers.spec import parse
from mapformers.train.sections import DATA, LanguageData, Optimiser, Training, require_task

Section = TypeVar("Section")


@dataclass(frozen=True)
class Preset:
    """One run. `task` says what `data` holds and what is scored, `architecture` what is trained: `model`
    holds fields of its config. `deviations` says where it leaves a published recipe. Each of `stages` is
    what a later run of a recipe changes; see `at_stage`.
    """

    name: str
    summary: str
    task: str = "language-model"
    architecture: str = "mapformer"
    deviations: tuple[str, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    data: Any = field(default_factory=LanguageData)  # the section of the task
    optimiser: Optimiser = field(default_factory=Optimiser)
    training: Training = field(default_factory=Training)
    stages: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        plain = dataclasses.asdict(self)
        plain["deviations"], plain["stages"] = list(self.deviations), list(self.stages)
        plain["optimiser"]["betas"] = list(self.optimiser.betas)
        return plain


def preset_names() -> tuple[str, ...]:
    """The presets that come with the library."""
    folder = resources.files("mapformers.train") / "presets"
    found = {item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")}
    first = [name for name in ("demo", "laptop") if name in found]
    return (*first, *sorted(found - set(first)))


def load_preset(name: str) -> Preset:
    """A preset by name. Raises MapformersError with the nearest names when there is none."""
    require_known("train", "preset", name, preset_names())
    text = (resources.files("mapformers.train") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return preset_from({"name": name, **yaml.safe_load(text)})


def preset_from(plain: dict[str, Any]) -> Preset:
    """A preset from plain data, every key and type checked; `repeat: n` in model.layers is written out."""
    _known_keys("preset", plain, Preset)
    task = coerce("task", plain.get("task", Preset.task), str)
    architecture = coerce("architecture", plain.get("architecture", Preset.architecture), str)
    require_task(task, architecture)
    model = _mapping("model", plain.get("model", {}))
    for key in ("layers", "encoder_layers"):
        if model.get(key) is not None:
            model = {**model, key: _expand(key, model[key])}
    return Preset(
        name=coerce("name", plain.get("name"), str),
        summary=coerce("summary", plain.get("summary", ""), str),
        deviations=tuple(coerce("deviations", plain.get("deviations", []), list[str])),
        task=task,
        architecture=architecture,
        model=model,
        data=_section("data", plain.get("data", {}), DATA[task]),
        optimiser=_section("optimiser", plain.get("optimiser", {}), Optimiser),
        training=_section("training", plain.get("training", {}), Training),
        stages=tuple(coerce("stages", plain.get("stages", []), list[dict])),
    )


def at_stage(preset: Preset, number: int) -> Preset:
    """One stage of a recipe, counted from 1, as a preset without stages. A recipe without any has stage 1."""
    count = max(1, len(preset.stages))
    require(
        1 <= number <= count, f"--stage: must lie in 1..{count} for {preset.name}, got {number}; change it"
    )
    plain = copy.deepcopy(preset.as_dict())
    changes = plain.pop("stages")
    for section, values in (changes[number - 1] if changes else {}).items():
        require_known("preset", "key of a stage", str(section), ("model", "data", "optimiser", "training"))
        plain[section] = {**plain[section], **_mapping(f"stages.{number}.{section}", values)}
    return preset_from(plain)


def with_attention(preset: Preset, text: str) -> Preset:
    """The preset with another attention wherever it can stand; in a Perceiver in the layers over latents.

    Whole blocks become Transformer blocks with that attention; what stands beside it in a layer stays. In an
    encoder-decoder it comes into the encoder, and into the decoder where it is causal, and where it reads a
    context query by query. Where it takes no rotary positions, the tokens get sinusoidal ones.
    """
    plain = copy.deepcopy(preset.as_dict())
    model = plain["model"]
    if preset.architecture == "perceiver":
        model["latent_attention"] = text
    else:
        fit = _places(text)
        changes = {"attention": text, **({} if fit.rotary else {"rotary": False})}
        if not fit.rotary and model.get("rotary", True):
            model["positions"] = "sinusoidal"
        for key in ("layers", "encoder_layers"):
            layers = [{k: v for k, v in layer.items() if k != "block"} for layer in model.get(key) or []]
            if not layers:
                continue
            takes = fit.causal or key == "encoder_layers" or model.get("encoder_layers") is None
            layers = [{**layer, **changes} if takes else layer for layer in layers]
            model[key] = [{**x, "cross": text} if fit.cross and "cross" in x else x for x in layers]
    return preset_from(plain)


class _Fit(typing.NamedTuple):
    """Where a mechanism can stand."""

    causal: bool
    cross: bool
    rotary: bool


def _places(text: str) -> _Fit:
    parts = [mechanism(part.name, **part.options) for part in parse(text)]

    def all_support(name: str) -> bool:
        return all(name in part.card.supports for part in parts)

    reads = all_support("cross") and not any(part.mixes_queries for part in parts)
    return _Fit(all_support("causal"), reads, all_support("rotary"))


def override(preset: Preset, settings: Iterable[str]) -> Preset:
    """The preset with `section.key=value` settings applied; values are YAML, typed by the field they go
    to.
    """
    plain = copy.deepcopy(preset.as_dict())
    for setting in settings:
        path, equals, text = setting.partition("=")
        require(
            bool(equals) and bool(path),
            f"--set: needs key=value, got {setting!r}; write --set data.context=512",
        )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise MapformersError(
                f"--set: {path} must be YAML, got {text!r}; quote it for the shell"
            ) from None
        _put(plain, path.strip().split("."), value)
    return preset_from(plain)


def coerce(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind` (int, float, bool, str, a Literal, list[..], tuple[..], dict, or a union of them).

    Raises MapformersError where it does not fit.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerce(name, value, next(one for one in arguments if one is not type(None)))
    if origin is Literal:
        require_known("preset", name, value if isinstance(value, str) else repr(value), arguments)
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if origin is list or arguments[-1] is ... else list(arguments)
        _fits(len(inner) == len(value), name, kind, value)
        return origin(
            coerce(f"{name}.{i}", item, one) for i, (item, one) in enumerate(zip(value, inner, strict=True))
        )
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            _fits(False, name, kind, value)
    plain = origin or kind
    _fits(isinstance(value, plain) and (plain is bool or not isinstance(value, bool)), name, kind, value)
    return value


def _fits(fine: bool, name: str, kind: Any, value: Any) -> None:
    wanted = (
        kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind).replace("typing.", "")
    )
    require(fine, f"preset: {name} must be {wanted}, got {value!r}; change it")


def _section(name: str, plain: Any, kind: type[Section]) -> Section:
    plain = _mapping(name, plain)
    _known_keys(name, plain, kind)
    hints = typing.get_type_hints(kind)
    return kind(**{key: coerce(f"{name}.{key}", value, hints[key]) for key, value in plain.items()})


def _known_keys(who: str, plain: dict[str, Any], kind: Any) -> None:
    for key in plain:
        require_known("preset", f"key of {who}", str(key), [one.name for one in dataclasses.fields(kind)])


def _mapping(name: str, plain: Any) -> dict[str, Any]:
    require(
        isinstance(plain, dict),
        f"preset: {name} must hold keys and values, got {plain!r}; write {name}.key=value",
    )
    return dict(plain)


def _expand(key: str, layers: Any) -> list[dict[str, Any]]:
    """[{attention: .., repeat: 2}] -> two equal layers."""
    require(
        isinstance(layers, list) and bool(layers),
        f"preset: model.{key} must be a list of layers, got {layers!r}",
    )
    written_out = []
    for layer in layers:
        layer = _mapping(f"model.{key}", layer)
        repeat = layer.pop("repeat", 1)
        require(
            isinstance(repeat, int) and repeat >= 1,
            f"preset: repeat must be 1 or more, got {repeat!r}; change it",
        )
        written_out += [dict(layer) for _ in range(repeat)]
    return written_out


def _put(plain: dict[str, Any], path: list[str], value: Any) -> None:
    """Set plain[path] = value; a number in the path is an index of a list (model.layers.0.attention)."""
    here: Any = plain
    for i, key in enumerate(path):
        where = ".".join(path[: i + 1])
        if isinstance(here, list):
            fine = key.isdigit() and int(key) < len(here)
            require(fine, f"--set: {where} must be an index below {len(here)}, got {key!r}; count from 0")
            key = int(key)  # type: ignore[assignment]
        else:
            require(
                isinstance(here, dict), f"--set: {where} leads into a value, got {here!r}; shorten the key"
            )
        if i == len(path) - 1:
            here[key] = value
        elif isinstance(here, dict) and key not in here:
            require_known("--set", "key", key, here)
        else:
            here = here[key]
