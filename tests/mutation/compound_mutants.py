"""Bugs in Longformer, in its second set of projections, and in the Sparse Transformer."""

from tests.mutation.mutant import Mutant

LONGFORMER = ("tests/mechanisms/test_longformer.py",)
LOCAL_GLOBAL = ("tests/attention/test_local_global.py",)
SPARSE = ("tests/mechanisms/test_sparse_transformer.py",)
COMPOUND_MUTANTS = (
    Mutant(
        "longformer counts a near global key twice",
        "mechanisms/sparse/longformer.py",
        "band = replace(band, query_segment=segment, key_is_seen=~is_global)",
        "band = replace(band, query_segment=segment)",
        LONGFORMER,
        "one_mask",
    ),
    Mutant(
        "global rows stay in the band too",
        "mechanisms/sparse/longformer.py",
        "band.query_segment.masked_fill(nowhere < 0, -1)",
        "band.query_segment",
        LONGFORMER,
        "one_mask",
    ),
    Mutant(
        "global rows with the first projections",
        "attention/multi_head.py",
        "self._run(second, [rows.of_marked for rows in by_rows], turns, scope, carry)",
        "self._run(heads, [rows.of_marked for rows in by_rows], turns, scope, carry)",
        LOCAL_GLOBAL,
        "formula",
    ),
    Mutant(
        "the second set is not rotated",
        "attention/multi_head.py",
        "of_marked for rows in by_rows], turns, scope, carry)",
        "of_marked for rows in by_rows], (None, None), scope, carry)",
        LOCAL_GLOBAL,
        "starts_as_one",
    ),
    Mutant(
        "local_global shares the tensors of its sets",
        "heads/local_global.py",
        "copy.deepcopy(first) for first in",
        "first for first in",
        LOCAL_GLOBAL,
    ),
    Mutant(
        "the merged head shows the strided keys of the window twice",
        "mechanisms/sparse/sparse_transformer.py",
        'skip=2 if self.config.part == "both" else 0,',
        'skip=1 if self.config.part == "both" else 0,',
        SPARSE,
        "once",
    ),
    Mutant(
        "fixed counts the summary of its own block twice",
        "mechanisms/sparse/sparse_transformer.py",
        'key_is_seen=~is_summary if self.config.part == "both" else None,',
        "key_is_seen=None,",
        SPARSE,
        "once",
    ),
    Mutant(
        "the strided window ends one key early",
        "mechanisms/sparse/sparse_transformer.py",
        "return Windows(before=size + 1), residues",
        "return Windows(before=size), residues",
        SPARSE,
        "formula",
    ),
)
