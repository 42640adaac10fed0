"""Bugs in patterns of positions, and in how blocks are drawn at random."""

from tests.mutation.mutant import Mutant

ATOMS = ("tests/mechanisms/test_position_atoms.py",)
BIGBIRD = ("tests/mechanisms/test_bigbird.py",)
DRAWS = ("tests/mechanisms/test_draws.py",)
POSITION_MUTANTS = (
    Mutant(
        "global queries look through the columns too",
        "mechanisms/sparse/global_tokens.py",
        "query_segment=-1 - queries, key_segment=keys",
        "query_segment=0 * queries, key_segment=keys",
        ATOMS,
        "global_tokens",
    ),
    Mutant(
        "dilation without its residue in the keys",
        "mechanisms/sparse/dilated.py",
        "key_segment=(scope.ranks_of_keys(m, q.device) % self.config.dilation)[:, None]",
        "key_segment=(scope.ranks_of_keys(m, q.device) * 0)[:, None]",
        ATOMS,
        "dilated",
    ),
    Mutant(
        "strides counted by index, so padding shifts them",
        "mechanisms/sparse/strided.py",
        "key_segment=(scope.ranks_of_keys(m, q.device) % self.config.stride)[:, None]",
        "key_segment=(scope.positions_of_keys(m, q.device) % self.config.stride)[:, None]",
        ("tests/contract/test_parity.py::test_with_padding_packing_and_positions",),
        "strided",
    ),
    Mutant(
        "random keys of the whole sequence under causal",
        "mechanisms/sparse/random_keys.py",
        "return self.drawn(q.shape[1], block, block + 1)",
        "return self.drawn(q.shape[1], block, block * 0 + -(-k.shape[2] // self.config.block))",
        ATOMS,
        "prefix",
    ),
    Mutant(
        "all heads draw the same",
        "mechanisms/sparse/random_keys.py",
        "head = torch.arange(heads, device=block.device)[None, :, None]",
        "head = torch.zeros(1, heads, 1, dtype=torch.long, device=block.device)",
        ATOMS,
        "right_number",
    ),
    Mutant(
        "a block drawn twice",
        "mechanisms/sparse/draws.py",
        "number = torch.where(earlier == number, last, number)",
        "number = torch.where(earlier == number, earlier, number)",
        DRAWS,
        "likely",
    ),
    Mutant(
        "the last of the pool is never drawn",
        "mechanisms/sparse/draws.py",
        "below(hashed(state, step), (last + 1).clamp(min=1))",
        "below(hashed(state, step), last.clamp(min=1))",
        DRAWS,
        "likely",
    ),
    Mutant(
        "bigbird counts random blocks from the first",
        "mechanisms/sparse/bigbird_blocks.py",
        "random + first + width[..., None] * behind",
        "random + first",
        BIGBIRD,
        "boolean",
    ),
    Mutant(
        "bigbird shows a global block again in the window",
        "mechanisms/sparse/bigbird_blocks.py",
        "(window < first) | (window > last[..., None])",
        "(window < 0) | (window >= blocks[..., None])",
        BIGBIRD,
        "boolean",
    ),
    Mutant(
        "bigbird forgets that the last block is global",
        "mechanisms/sparse/bigbird_blocks.py",
        'return first | (place.block == place.blocks - 1) if self.config.variant == "itc" else first',
        "return first",
        BIGBIRD,
        "itc_by_hand",
    ),
    Mutant(
        "portions of tiles lose their scores' place",
        "kernels/ranges.py",
        "tiles.query_block - rows.start, rows.stop - rows.start",
        "tiles.query_block % (rows.stop - rows.start), rows.stop - rows.start",
        ("tests/kernels/test_tiles.py",),
        "portions",
    ),
)
