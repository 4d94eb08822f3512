"""The committed table of tiles, and what is taken where it says nothing."""

import pytest

from dsv3.kernels import tiles


@pytest.mark.parametrize("op", ["fp8_gemm", "fp8_linear", "linear"])
def test_many_rows_never_go_to_the_matrix_vector_product(op):
    """Not even where a shape was measured for a few rows only."""
    shapes = {(n, k) for name, n, k in tiles._table() if name == op} | {(96, 160)}
    for n, k in shapes:
        for m in (1, tiles.MAX_ROWS, tiles.MAX_ROWS + 1, 64, 2048):
            tile = tiles.choose(op, m, n, k)
            assert tile.kernel != "matvec" or m <= tiles.MAX_ROWS, (op, m, n, k)


def test_the_table_serves_up_to_the_measured_number_of_rows():
    (op, n, k), rows = next(item for item in tiles._table().items() if len(item[1]) > 2)
    (first, tile), (second, other) = rows[:2]
    assert tiles.choose(op, first, n, k) == tile
    assert tiles.choose(op, first + 1, n, k) == other or second == first + 1
    assert tiles.choose(op, second, n, k) == other
