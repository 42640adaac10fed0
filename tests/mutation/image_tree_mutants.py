"""Bugs in attention on grids and on trees."""

from tests.mutation.mutant import Mutant

IMAGE_LOCAL = ("tests/mechanisms/test_image_local.py",)
BINARY_TREE = ("tests/blocks/test_binary_tree.py",)
IMAGE_TREE_MUTANTS = (
    Mutant(
        "axial columns run over all rows",
        "mechanisms/sparse/axial.py",
        "query_segment=(queries // width if rows else queries % width)[:, None]",
        "query_segment=(queries // width if rows else queries * 0)[:, None]",
        ("tests/mechanisms/test_axial.py",),
    ),
    Mutant(
        "axial takes any grid",
        "mechanisms/sparse/grid.py",
        "count <= height * width if scope.causal else count == height * width,",
        "True,",
        ("tests/mechanisms/test_axial.py",),
    ),
    Mutant(
        "image_local forgets the memory to the right",
        "mechanisms/sparse/grid.py",
        "inside = inside & (at.column >= place * size - memory[1])",
        "inside = inside & (at.column >= place * size)",
        IMAGE_LOCAL,
    ),
    Mutant(
        "image_local keeps one ring too few",
        "mechanisms/sparse/image_local.py",
        "alive = bands * config.blocks.per_band + sides + 1",
        "alive = bands * config.blocks.per_band + sides",
        ("tests/contract/test_decode.py::test_steps_equal_the_parallel_form",),
        "image_local",
    ),
    Mutant(
        "axial_image sees the pixel that it predicts",
        "blocks/axial_image.py",
        "x = _shift_right(x, self.config.width) if self.config.shift else x",
        "pass",
        ("tests/blocks/test_axial_image.py",),
    ),
    Mutant(
        "axial_image does not shift down",
        "blocks/axial_image.py",
        "above = _shift(above, self.config.width)",
        "pass",
        ("tests/contract/test_blocks.py",),
        "axial_image and future",
    ),
    Mutant(
        "binary_tree covers half a parent twice",
        "blocks/tree_edges.py",
        "node = torch.where(half, torch.where(there, first[level - 1] + child, -1), node)",
        "pass",
        BINARY_TREE,
        "covers",
    ),
    Mutant(
        "binary_tree sees a child that is not there",
        "blocks/tree_edges.py",
        "there = (child >= 0) & (child < counts[level - 1])",
        "there = child >= 0",
        BINARY_TREE,
        "covers",
    ),
    Mutant(
        "binary_tree without the kinds of its edges",
        "blocks/tree_attention.py",
        "at_least_float32(content + q @ edge_keys.T)",
        "at_least_float32(content + 0 * (q @ edge_keys.T))",
        ("tests/contract/test_blocks.py",),
        "binary_tree and parameter",
    ),
    Mutant(
        "binary_tree sees spans of padding",
        "blocks/binary_tree.py",
        "torch.cat([real, real[:, edges.start]], 1)",
        "torch.cat([real, torch.ones_like(real[:, edges.start])], 1)",
        BINARY_TREE,
        "padding",
    ),
)
