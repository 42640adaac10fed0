"""Bugs in hash buckets, in the reversible stack and in the edges of sac."""

from tests.mutation.mutant import Mutant

REFORMER = ("tests/mechanisms/test_reformer.py",)
REVERSIBLE = ("tests/blocks/test_reversible.py",)
REFORMER_MUTANTS = (
    Mutant(
        "a token sees itself among the others",
        "mechanisms/content/lsh_buckets.py",
        "skip=1,",
        "skip=0,",
        REFORMER,
        "by_hand",
    ),
    Mutant(
        "the rounds of hashing share their buckets",
        "mechanisms/content/lsh_buckets.py",
        "bucket + buckets * torch.arange(rounds, device=bucket.device)",
        "bucket + 0 * torch.arange(rounds, device=bucket.device)",
        ("tests/contract/test_parity.py",),
        "reformer",
    ),
    Mutant(
        "padding sees a bucket",
        "mechanisms/content/lsh_buckets.py",
        "asked.masked_fill(~real[:, None, :, None], -1)",
        "asked",
        ("tests/contract/test_padding.py", "tests/contract/test_parity.py"),
        "reformer",
    ),
    Mutant(
        "own keys as strong as the others",
        "mechanisms/content/reformer.py",
        "OWN = -1e5",
        "OWN = 0.0",
        REFORMER,
        "by_hand",
    ),
    Mutant(
        "the short cut for own keys ignores their weight",
        "kernels/own_key.py",
        "if plan.log_weight is not None:",
        "if False:",
        ("tests/kernels/test_plans.py",),
        "own_keys",
    ),
    Mutant(
        "the backward chooses again",
        "blocks/reversible_stack.py",
        "self.choices.again()",
        "None",
        REVERSIBLE,
        "choices",
    ),
    Mutant(
        "other dropout in the second pass",
        "blocks/reversible_stack.py",
        "block.feed(leaf, self.seeds.feed)",
        "block.feed(leaf)",
        REVERSIBLE,
        "gradients",
    ),
    Mutant(
        "the second stream restored from the wrong first one",
        "blocks/reversible.py",
        "second = streams.second - self.feed(streams.first)",
        "second = streams.second - self.feed(streams.second)",
        REVERSIBLE,
        "inverse",
    ),
    Mutant(
        "edges of sac reach ahead",
        "mechanisms/content/sac_predictor.py",
        "Scope(scope.causal, scope.key_is_real",
        "Scope(False, scope.key_is_real",
        ("tests/contract/test_parity.py", "tests/contract/test_causality.py"),
        "sac",
    ),
    Mutant(
        "the policy is rewarded for losses",
        "core/policy.py",
        "loss - self.mean, 0.0)",
        "self.mean - loss, 0.0)",
        ("tests/mechanisms/test_sac.py",),
        "baseline or learns",
    ),
    Mutant(
        "padding moves the LSTM of sac",
        "mechanisms/content/sac_lstm.py",
        "state = state.where(scope.key_is_real[:, i].expand(batch), before)",
        "state = state",
        ("tests/contract/test_padding.py", "tests/mechanisms/test_sac.py"),
        "sac",
    ),
)
