"""Training and decoding speed of the `laptop` preset, beside GPT-2 of equal size from transformers.

    python benchmarks/models.py train      # tokens per second of a training step, about 3 minutes on 2 cores
    python benchmarks/models.py decode     # tokens per second one by one, about 4 minutes

Training: forward, backward and optimiser step, alternated. Decoding: greedy steps with the cache of each
model, after so many tokens of prefix; ours reads the prefix in chunks.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import common
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mapformers.kernels.native.library import torch_kernels
from mapformers.models import MapformerForCausalLM
from mapformers.train.models import config_of
from mapformers.train.presets import load_preset

PRESET, VOCABULARY, CHUNK = "laptop", 256, 2048


def ours() -> torch.nn.Module:
    return MapformerForCausalLM(config_of(load_preset(PRESET)))


def gpt2(context: int) -> torch.nn.Module:
    """The same width, depth, heads and feed-forward; SDPA attention over everything."""
    config = config_of(load_preset(PRESET))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=context,
                n_embd=config.hidden_size,
                n_layer=len(config.layers),
                n_head=config.num_attention_heads,
                n_inner=config.feed_forward_size,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                attn_implementation="sdpa",
                bos_token_id=0,
                eos_token_id=0,
            )
        )


def step_of(model: torch.nn.Module, tokens: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """One training step on the same tokens every time."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if hasattr(model, "update_centroids"):
            model.update_centroids()

    return step


def train(rounds: int) -> dict[str, object]:
    """Tokens per second at the preset's context, on both kernels, and at 8,192 beside GPT-2."""
    result: dict[str, object] = {}
    for batch, context in ((2, 2048), (1, 8192)):
        tokens = torch.randint(0, VOCABULARY, (batch, context), generator=torch.Generator().manual_seed(0))
        steps = {
            "native": step_of(ours(), tokens, torch.float32),
            "native, bfloat16 autocast": step_of(ours(), tokens, torch.bfloat16),
            "torch kernels": step_of(ours(), tokens, torch.float32),
            "GPT-2": step_of(gpt2(context), tokens, torch.float32),
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for i in range(rounds + 1):
            for name, step in steps.items():
                with torch_kernels() if name == "torch kernels" else contextlib.nullcontext():
                    start = time.perf_counter()
                    step()
                    if i:
                        times[name].append(time.perf_counter() - start)
        rates = {name: batch * context / statistics.median(t) for name, t in times.items()}
        for name, rate in rates.items():
            print(
                f"{batch} x {context}  {name:26s} {rate:8.0f} tokens/s  "
                f"{rates['native'] / rate:5.2f}x slower than native",
                flush=True,
            )
        result[f"{batch}x{context}"] = rates
    return result


@torch.no_grad()
def filled(model: torch.nn.Module, length: int) -> object:
    """The cache after `length` tokens, read in chunks."""
    cache = None
    tokens = torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    for chunk in tokens.split(CHUNK, 1):
        cache = model(
            input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).past_key_values
    return cache


@torch.no_grad()
def rate_after(model: torch.nn.Module, length: int, count: int) -> float:
    """Tokens per second, median over `count` steps."""
    cache, token, times = filled(model, length), torch.zeros(1, 1, dtype=torch.long), []
    for _ in range(count):
        start = time.perf_counter()
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def decode(count: int) -> dict[str, object]:
    """Ours from 1,000 to 262,144 tokens of prefix; GPT-2 at 32,768."""
    model, result = ours().eval(), {}
    for length in (1000, 4096, 32768, 262144):
        result[f"ours after {length}"] = rate_after(model, length, count)
        print(f"ours   after {length:7,d} tokens {result[f'ours after {length}']:7.1f} tokens/s", flush=True)
    result["GPT-2 after 32768"] = rate_after(gpt2(32768 + count).eval(), 32768, count)
    print(f"GPT-2  after  32,768 tokens {result['GPT-2 after 32768']:7.1f} tokens/s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "decode"))
    parser.add_argument("--rounds", type=int, default=5, help="timed steps, or 20 tokens each")
    options = parser.parse_args()
    found = train(options.rounds) if options.what == "train" else decode(20 * options.rounds)
    common.write(common.dated(f"models-{options.what}"), {"preset": PRESET, "tokens_per_second": found})


if __name__ == "__main__":
    main()
