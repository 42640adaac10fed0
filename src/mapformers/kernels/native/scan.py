"""Causal sums on the native kernel: tensors to the structure that scan.cpp reads. See kernels/scan.py."""

import ctypes
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mapformers.kernels.native.call import POINTER, SIZE, STORED


class Scan(ctypes.Structure):
    """The same structure, field by field, stands in scan.cpp."""

    _fields_ = [
        *((name, POINTER) for name in ("a", "b", "values", "sums", "exponents", "mark", "faded", "level")),
        *((name, POINTER) for name in ("y", "top", "after", "level_after", "carried", "levels")),
        *((name, POINTER) for name in ("grad", "grad_after", "grad_level")),
        *((name, POINTER) for name in ("grad_a", "grad_b", "grad_values", "grad_sums")),
        *((name, POINTER) for name in ("grad_mark", "grad_faded", "grad_of_level")),
        *((name, SIZE) for name in ("rows", "length", "features", "dim", "value_dim", "stretch", "threads")),
    ]


@dataclass(frozen=True)
class ScanInputs:
    """As in `kernels.scan.scan`, all of one dtype; marks where mark, faded and level are."""

    a: Tensor
    b: Tensor
    values: Tensor
    sums: Tensor
    exponents: Tensor | None
    mark: Tensor | None
    faded: Tensor | None
    level: Tensor | None

    def dense(self) -> "ScanInputs":
        """The same, contiguous."""
        return ScanInputs(*(None if x is None else x.contiguous() for x in self.tensors()))  # type: ignore[arg-type]

    def tensors(self) -> list[Tensor | None]:
        """In the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    def named(self) -> dict[str, Tensor | None]:
        """By the name of the field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class ScanResults:
    """y, top, sums and level behind the last row; those before each stretch, [P, stretches, F, E]."""

    y: Tensor
    top: Tensor | None
    after: Tensor
    level_after: Tensor | None
    carried: Tensor
    levels: Tensor


@dataclass(frozen=True)
class Setting:
    """Where marks start anew, and how many threads work."""

    stretch: int
    threads: int


def forward(library: ctypes.CDLL, inputs: ScanInputs, setting: Setting) -> ScanResults:
    """The causal sums of dense inputs."""
    sums, level = inputs.sums, inputs.level
    stretches = -(-inputs.values.shape[1] // setting.stretch)
    results = ScanResults(
        y=torch.empty_like(inputs.values),
        top=None if inputs.mark is None else torch.empty_like(inputs.mark),
        after=torch.empty_like(sums),
        level_after=None if level is None else torch.empty_like(level),
        carried=sums.new_empty(sums.shape[0], stretches, *sums.shape[1:]),
        levels=sums.new_empty(sums.shape[0], stretches),
    )
    call = _call(inputs, setting, vars(results))
    library.mapformers_scan_forward(ctypes.byref(call), STORED[sums.dtype])
    return results


def backward(
    library: ctypes.CDLL,
    inputs: ScanInputs,
    setting: Setting,
    carried: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor | None],
) -> ScanInputs:
    """Gradients of the inputs, from those of y, of the sums and of the level behind the last row."""
    given = [None if x is None else x.contiguous() for x in grads]
    found = {name: None if x is None else torch.zeros_like(x) for name, x in inputs.named().items()}
    found["exponents"] = None
    tensors = {f"grad_{name}": x for name, x in found.items() if name not in ("exponents", "level")}
    tensors |= dict(zip(("grad", "grad_after", "grad_level"), given, strict=True))
    tensors |= {"grad_of_level": found["level"], "carried": carried[0], "levels": carried[1]}
    call = _call(inputs, setting, tensors)
    library.mapformers_scan_backward(ctypes.byref(call), STORED[inputs.a.dtype])
    return ScanInputs(**found)  # type: ignore[arg-type]


def _call(inputs: ScanInputs, setting: Setting, others: dict[str, Any]) -> Scan:
    """The structure; the tensors must stay alive while it is used."""
    rows, length, dim = inputs.a.shape
    return Scan(
        rows=rows,
        length=length,
        dim=dim,
        features=inputs.sums.shape[1],
        value_dim=inputs.values.shape[2],
        stretch=setting.stretch,
        threads=setting.threads,
        **{name: None if x is None else x.data_ptr() for name, x in (inputs.named() | dict(others)).items()},
    )
