"""Whether anything but the torch path may run on a GPU: the switch is that of the native kernel."""

import torch
from torch.torch_version import TorchVersion

from mapformers.kernels.native.library import wanted

OLDEST_TORCH = "2.13"  # what FlexAttention and varlen_attn take has changed from version to version


def may_run_here() -> bool:
    """False inside torch_kernels(), with MAPFORMERS_NATIVE=0, with an older torch, and under vmap, jvp and
    their kind, for which these kernels have no rules.
    """
    return (
        wanted()
        and TorchVersion(torch.__version__) >= OLDEST_TORCH
        and torch._C._functorch.peek_interpreter_stack() is None
    )
