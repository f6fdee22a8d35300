"""Matrix products out of tiles: the right operand is packed into panels, once for all rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import entry, jit, view
from .lanes import (
    HALF_BYTES,
    HALVES,
    LINE_BYTES,
    PANEL_BYTES,
    SQUARE_BYTES,
    TILES,
    VECTOR_BYTES,
    dot_rows,
    half1,
    on_stack,
    pair1,
    part,
    square,
    stay_apart,
    tile1,
    tile_of_rows,
)

ALIGNED = 64  # bytes
_K_BLOCK = 512
_K_IN_PLACE = 8  # rows that are read together, where they lie
_ROW_BLOCK = 96
_COPIED_K = 64  # numbers of each of so many rows that are copied
_NEAR_BYTES = 2048  # from k to k + 1, up to which they are read where they lie
_copies = on_stack(_ROW_BLOCK * _COPIED_K)


@jit
def panel_width(a: Any) -> Any:
    return PANEL_BYTES // a.itemsize


@view
def aligned(a: Any) -> Any:
    """An array from where no vector crosses a cache line."""
    return part(a, -a.ctypes.data % ALIGNED // a.itemsize, a.size)


@jit
def pack_rows(
    w: Any, w_row: int, w_column: int, rows: int, columns: int, panels: Any, begin: int, end: int
) -> None:
    """Matrix (rows, columns), one of whose strides is 1, to panels begin to end - 1.

    Panels are (number, rows, width); what the last has beyond the columns is zero.
    """
    width = panel_width(panels)
    side = SQUARE_BYTES // panels.itemsize
    for p in range(begin, end):
        used = min(width, columns - p * width)
        first, to = p * width * w_column, p * rows * width
        squares = 0 if w_column == 1 else rows // side * side
        if squares:
            for j in range(0, used // side * side, side):
                for k in range(0, squares, side):
                    square(w, first + j * w_column + k, w_column, panels, to + k * width + j)
        for k in range(rows):
            row = part(panels, to + k * width, to + (k + 1) * width)
            done = used // side * side if k < squares else 0
            if w_column == 1:
                source = part(w, first + k * w_row, first + k * w_row + used)
                for j in range(used):
                    row[j] = source[j]
            else:
                for j in range(done, used):
                    row[j] = w[first + k * w_row + j * w_column]
            for j in range(used, width):
                row[j] = 0


def panel_size(rows: int, columns: int, itemsize: int) -> int:
    """How many numbers the panels of a matrix are."""
    width = PANEL_BYTES // itemsize
    return -(-columns // width) * width * rows


@jit
def pack_all(w: Any, w_row: int, w_column: int, rows: int, columns: int, panels: Any) -> None:
    """The whole of a matrix."""
    stay_apart()
    width = panel_width(panels)
    pack_rows(w, w_row, w_column, rows, columns, panels, np.intp(0), (columns + width - 1) // width)


@entry
def pack(w: Any, w_row: int, w_column: int, rows: int, columns: int, panels: Any) -> None:
    """Matrix (rows, columns) to panels, as `pack_rows`."""
    pack_all(w, w_row, w_column, rows, columns, panels)


@jit
def add_rows(to: Any, a: Any, at: int, row: int, columns: int, rows: int) -> None:
    """to = the sum of some columns of a over the rows, in their order."""
    stay_apart()
    for j in range(columns):
        to[j] = 0
    for r in range(rows):
        numbers = part(a, at + r * row, at + r * row + columns)
        for j in range(columns):
            to[j] += numbers[j]


@entry
def sums(to: Any, a: Any, at: int, row: int, columns: int, rows: int) -> None:
    """As `add_rows`."""
    add_rows(to, a, at, row, columns, rows)


@jit
def multiply(
    c: Any,
    c_at: int,
    c_row: int,
    columns: int,
    rows: int,
    a: Any,
    a_at: int,
    a_row: int,
    a_k: int,
    panels: Any,
    count: int,
    first: int,
    last: int,
) -> None:
    """c += a w for `rows` rows and the panels first to last - 1; count is how long the sums are.

    Or the panels first - 1 down to last: who goes over weights again and again, from either side in
    turn, finds those used last in the cache.
    """
    stay_apart()
    width = panel_width(panels)
    next_ = count * width
    turned, low, high = first > last, min(first, last), max(first, last)
    if rows == 1:
        pairs = (high - low + 1) // 2
        for j in range(pairs):
            p = low + 2 * (pairs - 1 - j if turned else j)
            to, w_at, left = c_at + p * width, p * next_, columns - p * width
            if p + 1 < high:
                used = min(2 * width, left)
                pair1(c, to, c_row, used, a, a_at, a_row, a_k, panels, w_at, next_, count, w_at)
            else:
                used = min(width, left)
                if used * c.itemsize <= HALF_BYTES:
                    half1(c, to, c_row, used, a, a_at, a_row, a_k, panels, w_at, next_, count, w_at)
                else:
                    tile1(c, to, c_row, used, a, a_at, a_row, a_k, panels, w_at, next_, count, w_at)
        return
    if a_row == 1 and a_k * a.itemsize > _NEAR_BYTES:
        multiply_columns(c, c_at, c_row, columns, rows, a, a_at, a_k, panels, count, low, high)
        return
    for k in range(0, count, _K_BLOCK):
        some = min(_K_BLOCK, count - k)
        for begin in range(0, rows, _ROW_BLOCK):
            n, to, from_ = min(rows - begin, _ROW_BLOCK), c_at + begin * c_row, a_at + begin * a_row
            for j in range(high - low):
                p = high - 1 - j if turned else low + j
                following = max(p - 1, low) if turned else min(p + 1, high - 1)
                used = min(width, columns - p * width)
                tiles(
                    c, to + p * width, c_row, used, n, a, from_ + k * a_k, a_row, a_k, panels,
                    (p * count + k) * width, next_, some, (following * count + k) * width,
                )  # fmt: skip


def _tiles(tile1: Any, tile2: Any, tile3: Any, tile4: Any, tile5: Any, tile6: Any) -> Any:
    @jit
    def tiles(
        c: Any, to: int, c_row: int, used: int, rows: int, a: Any, at: int, a_row: int, a_k: int,
        panels: Any, w_at: int, next_: int, count: int, ahead: int,
    ) -> None:  # fmt: skip
        """c += a w for `rows` rows and one panel; that at `ahead` is fetched meanwhile."""
        stay_apart()
        left, lines = rows, PANEL_BYTES // LINE_BYTES
        while left > 0:
            # As equal as can be: 32 rows are 6 + 6 + 5 + 5 + 5 + 5.
            size = (left + (left + 5) // 6 - 1) // ((left + 5) // 6)
            if size == 6:
                tile6(c, to, c_row, used, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
            elif size == 5:
                tile5(c, to, c_row, used, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
            elif size == 4:
                tile4(c, to, c_row, used, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
            elif size == 3:
                tile3(c, to, c_row, used, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
            elif size == 2:
                tile2(c, to, c_row, used, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
            else:
                tile1(c, to, c_row, used, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
            to, at, left, lines = to + size * c_row, at + size * a_row, left - size, lines - 1
            ahead = ahead + count * (LINE_BYTES // a.itemsize) if lines > 0 else w_at

    return tiles


_whole, _half = _tiles(*TILES), _tiles(*HALVES)


@jit
def _either(
    c: Any, to: int, c_row: int, used: int, rows: int, a: Any, at: int, a_row: int, a_k: int,
    panels: Any, w_at: int, next_: int, count: int, ahead: int,
) -> None:  # fmt: skip
    """With tiles of half a panel where the rest of it is padding."""
    if used * c.itemsize <= HALF_BYTES:
        _half(c, to, c_row, used, rows, a, at, a_row, a_k, panels, w_at, next_, count, ahead)
    else:
        _whole(c, to, c_row, used, rows, a, at, a_row, a_k, panels, w_at, next_, count, ahead)


tiles = _either if HALF_BYTES else _whole


@jit
def multiply_columns(
    c: Any,
    c_at: int,
    c_row: int,
    columns: int,
    rows: int,
    a: Any,
    a_at: int,
    a_k: int,
    panels: Any,
    count: int,
    first: int,
    last: int,
) -> None:
    """As `multiply`, for an `a` whose rows lie side by side, k after k.

    Some of them are copied first: k to k + 1 may be a page, and lines a page apart push one another
    out of a cache.
    """
    stay_apart()
    width = panel_width(panels)
    own = _copies(c)
    for begin in range(0, rows, _ROW_BLOCK):
        n, to = min(rows - begin, _ROW_BLOCK), c_at + begin * c_row
        for k in range(0, count, _COPIED_K):
            some = min(_COPIED_K, count - k)
            for i in range(some):
                at = a_at + (k + i) * a_k + begin
                source, copied = part(a, at, at + n), part(own, i * _ROW_BLOCK, i * _ROW_BLOCK + n)
                for j in range(n):
                    copied[j] = source[j]
            for p in range(first, last):
                used = min(width, columns - p * width)
                tiles(
                    c, to + p * width, c_row, used, n, own, np.intp(0), np.intp(1),
                    np.intp(_ROW_BLOCK), panels, (p * count + k) * width, count * width, some,
                    (min(p + 1, last - 1) * count + k) * width,
                )  # fmt: skip


@jit
def multiply_transposed(
    c: Any, c_at: int, columns: int, a: Any, a_at: int, w: Any, w_at: int, count: int
) -> None:
    """c += a w^T for one row, as `multiply` does it; w (columns, count) is not packed."""
    stay_apart()
    lanes = VECTOR_BYTES // c.itemsize
    for j in range(0, columns, lanes):
        dot_rows(c, c_at + j, columns - j, a, a_at, w, w_at + j * count, count, count)


@jit
def multiply_in_place(
    c: Any, c_at: int, columns: int, a: Any, a_at: int, w: Any, w_at: int, count: int
) -> None:
    """c += a w for one row, as `multiply` does it; w (count, columns) is not packed."""
    stay_apart()
    width = panel_width(c)
    for k in range(0, count, _K_IN_PLACE):
        some = min(_K_IN_PLACE, count - k)
        for j in range(0, columns, width):
            at = w_at + k * columns + j
            used = min(width, columns - j)
            tile_of_rows(c, c_at + j, 0, used, a, a_at + k, 0, 1, w, at, columns, some, at)


@jit
def product_block(
    c: Any,
    c_row: int,
    columns: int,
    bias: Any,
    a: Any,
    a_at: int,
    a_row: int,
    a_k: int,
    panels: Any,
    count: int,
    begin: int,
    end: int,
    first: int,
    last: int,
) -> None:
    """Rows begin to end - 1 and panels first to last - 1 of c = a w + bias.

    An empty bias is zero.
    """
    stay_apart()
    width = panel_width(panels)
    at, used = first * width, min(columns, last * width) - first * width
    for r in range(begin, end):
        row = part(c, r * c_row + at, r * c_row + at + used)
        if bias.size:
            of_row = part(bias, at, at + used)
            for j in range(used):
                row[j] = of_row[j]
        else:
            for j in range(used):
                row[j] = 0
    multiply(
        c,
        begin * c_row,
        c_row,
        columns,
        end - begin,
        a,
        a_at + begin * a_row,
        a_row,
        a_k,
        panels,
        count,
        first,
        last,
    )


@jit
def product_rows(
    c: Any, c_row: int, columns: int, bias: Any, a: Any, a_at: int, a_row: int, a_k: int,
    panels: Any, count: int, begin: int, end: int,
) -> None:  # fmt: skip
    """The same with all panels."""
    width = panel_width(panels)
    last = (columns + width - 1) // width
    product_block(
        c, c_row, columns, bias, a, a_at, a_row, a_k, panels, count, begin, end, np.intp(0), last
    )


@entry
def product(
    c: Any, c_row: int, columns: int, bias: Any, a: Any, a_at: int, a_row: int, a_k: int,
    panels: Any, count: int, begin: int, end: int,
) -> None:  # fmt: skip
    """As `product_rows`."""
    product_rows(c, c_row, columns, bias, a, a_at, a_row, a_k, panels, count, begin, end)
