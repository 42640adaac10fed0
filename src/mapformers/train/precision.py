"""What `precision: auto` means on this machine."""

from dataclasses import replace

import torch

from mapformers.train.presets import Preset

MULTIPLIES_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # of processors; the last is that of Arm


def has_fast_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than those of float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name, False)) for name in MULTIPLIES_BFLOAT16)


def settle_precision(preset: Preset) -> Preset:
    """auto becomes bfloat16 where that is fast, float32 elsewhere; a run keeps what it was started with."""
    if preset.training.precision != "auto":
        return preset
    precision = "bfloat16" if has_fast_bfloat16() else "float32"
    return replace(preset, training=replace(preset.training, precision=precision))
