"""Bugs in score terms that depend on the distance, and in what kernels make of their table."""

from tests.mutation.mutant import Mutant

NATIVE = "kernels/native/range_attention.cpp"
EQUAL = ("tests/kernels/test_native.py::test_native_equals_torch", "tests/priors/test_adaptive_span.py")


def of(name: str) -> tuple[str, ...]:
    """The tests of a term."""
    return (f"tests/priors/test_{name}.py",)


DISTANCE_MUTANTS = (
    Mutant(
        "keys ahead share the buckets of those behind",
        "priors/t5_bias.py",
        "torch.where(distance < 0, half, 0)",
        "torch.where(distance < 0, 0, 0)",
        of("t5_bias"),
    ),
    Mutant(
        "the penalty may raise scores",
        "priors/gaussian.py",
        "-(weight * distance.to(weight.dtype).square() + bias).abs()",
        "-(weight * distance.to(weight.dtype).square() + bias)",
        of("gaussian"),
    ),
    Mutant(
        "even scales see one token more",
        "priors/multi_scale.py",
        "scale // 2 for scale, count",
        "(scale + 1) // 2 for scale, count",
        of("multi_scale"),
    ),
    Mutant(
        "the centre lies on the other side",
        "priors/hard_gaussian.py",
        "(distance + centres[head])",
        "(distance - centres[head])",
        of("hard_gaussian"),
    ),
    Mutant(
        "queries and keys still count",
        "priors/hard_gaussian.py",
        "replaces_scores",
        "replaces_no_scores",
        of("hard_gaussian"),
    ),
    Mutant(
        "the logarithm of zero is taken",
        "priors/adaptive_span.py",
        "torch.where(seen, share, 1.0).log().masked_fill(~seen, -math.inf)",
        "share.clamp(min=0).log()",
        of("adaptive_span"),
        "finite",
    ),
    Mutant(
        "the plan ends before the ramp",
        "priors/adaptive_span.py",
        "float(self.spans().max())) + self.config.ramp",
        "float(self.spans().max())) + self.config.ramp // 2",
        of("adaptive_span"),
    ),
    Mutant(
        "spans leave their range",
        "priors/adaptive_span.py",
        "self.ratio.clamp_(0.0, 1.0)",
        "self.ratio.clamp_(0.0)",
        of("adaptive_span"),
        "clamp",
    ),
    Mutant(
        "every row has the first task",
        "priors/camtl.py",
        "batch = pairs.batch % gamma.shape[0]",
        "batch = pairs.batch * 0",
        of("camtl"),
    ),
    Mutant(
        "native: a stretch of the table begins one place late",
        NATIVE,
        "const T *stretch = table + table_place(0, j);",
        "const T *stretch = table + table_place(0, j) + 1;",
        EQUAL,
    ),
    Mutant(
        "native: the topmost row of a stretch is lost",
        NATIVE,
        "stretch[ROWS - 1] += sum[ROW_VECTORS - 1][W - 1] * factor;",
        "",
        EQUAL,
    ),
    Mutant(
        "native: rows in which the table hides every key have NaN for gradients",
        NATIVE,
        "std::isfinite(sum) ? sum * T(LOG2_E) : std::numeric_limits<T>::infinity();",
        "sum * T(LOG2_E);",
        EQUAL,
    ),
)
