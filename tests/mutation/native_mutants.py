"""Bugs in the C++ sources, each compiled into a cache of its own; the check at load may catch it."""

from tests.mutation.mutant import Mutant

RANGES, NEAREST, ROTATE, SCAN = (
    f"kernels/native/{name}.cpp" for name in ("range_attention", "nearest", "rotate", "scan")
)
TESTS = (
    "tests/kernels/test_native_library.py::test_the_kernel_passes_its_check",
    "tests/kernels/test_native.py::test_a_key_may_lie_at_neighbouring_places",
    "tests/kernels/test_native.py::test_native_equals_torch",
    "tests/kernels/test_native_scan.py",
    "tests/kernels/test_nearest.py",
    "tests/attention/test_multi_head.py",
)

NATIVE_MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(f"native: {name}", file, old, new, TESTS)
    for name, file, old, new in (
        ("a range ends one key late", RANGES, "(last[n] > place)", "(last[n] >= place)"),
        ("earlier sums not rescaled", RANGES, "total = total * shrink + sum;", "total = total + sum;"),
        (
            "gradient of the log-sum-exp dropped",
            RANGES,
            "T sum = call.grad_lse ? -at_row(call.grad_lse, r) : T(0);",
            "T sum = T(0);",
        ),
        (
            "heads share the wrong keys",
            RANGES,
            "kv = h / (call.heads / call.kv_heads)",
            "kv = h % call.kv_heads",
        ),
        (
            "later rounds start anew",
            RANGES,
            "if (r < rows && (round || call.mass))",
            "if (r < rows && !round && call.mass)",
        ),
        ("the table is read backwards", RANGES, "+ call.table_zero;", "- call.table_zero;"),
        (
            "a key at two places is written once",
            RANGES,
            "count == OUT_ROWS && !call.shared_keys",
            "count == OUT_ROWS",
        ),
        ("vectors not centred", NEAREST, "L::load(column + d * ROWS) - mean;", "L::load(column + d * ROWS);"),
        (
            "a centroid is named twice",
            NEAREST,
            "taken |= chosen[j] == c;",
            "taken |= chosen[j] != chosen[j];",
        ),
        (
            "a later stretch forgets the level",
            SCAN,
            "if (call.faded) level += of(call.faded, call.length)[stop - 1];",
            "if (call.faded) level = of(call.faded, call.length)[stop - 1];",
        ),
        ("a key counts for the query before it", SCAN, ">= typename L::Int(j)", "+ 1 >= typename L::Int(j)"),
        (
            "gradients of the values miss their chunk",
            SCAN,
            "products.add(y, EP, C, EP, pairs, C, 1, g, EP, C, FROM);",
            "",
        ),
        ("gradients turn forth, not back", ROTATE, "call.back ? T(-1) : T(1)", "call.back ? T(1) : T(1)"),
    )
)
