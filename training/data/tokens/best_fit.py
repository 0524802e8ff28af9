"""Best-fit decreasing, one piece after the other (Johnson, 1974)."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from training.data.tokens.shards import Int64


def best_fit(sizes: Int64, context: int) -> Int64:
    """Row of each piece; `sizes` int64 [pieces] falling, each below `context`.

    Rows with the same free room form a linked list: `head` is its first row and `below` the one after each. A binary
    tree over the room, with leaf `leaves + r` for the rows of room r, finds the tightest room that fits.
    """
    leaves = 1
    while leaves < context:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.int64)  # rows at or below a node
    head = np.full(context, -1, np.int64)
    below = np.empty(len(sizes), np.int64)
    rows = np.empty(len(sizes), np.int64)
    count = 0

    for piece in range(len(sizes)):
        # The first leaf at or right of the piece's size that has a row: climb until a right neighbour has one, then
        # descend to its leftmost. Node 1 is the root: no row fits.
        size = sizes[piece]
        node = leaves + size
        if tree[node] == 0:
            while node > 1 and (node % 2 == 1 or tree[node + 1] == 0):
                node //= 2
            if node > 1:
                node += 1
                while node < leaves:
                    node = 2 * node if tree[2 * node] > 0 else 2 * node + 1

        # Take the row out of its list, or begin a new one.
        if node > 1:
            room = node - leaves
            row = head[room]
            head[room] = below[row]
            while node >= 1:
                tree[node] -= 1
                node //= 2
        else:
            room = context
            row = count
            count += 1
        rows[piece] = row

        # Put it back where its room is now.
        room -= size
        below[row] = head[room]
        head[room] = row
        node = leaves + room
        while node >= 1:
            tree[node] += 1
            node //= 2
    return rows


def rows_of_sizes(pieces_of_size: Int64, context: int) -> int:
    """Rows that `best_fit` takes for pieces, longest first; `pieces_of_size[n]` of them hold `n` tokens.

    A row that took a piece and still has room for one of its size is the tightest that fits, so it takes them until it
    has not.
    """
    with_room = np.zeros(context + 1, np.int64)  # rows by their free places
    count = 0
    for tokens in range(len(pieces_of_size) - 1, 0, -1):
        size, left = tokens + 1, pieces_of_size[tokens]
        for room in range(size, context):
            if left == 0:
                break
            if with_room[room] == 0:
                continue
            most = room // size
            filled = min(with_room[room], left // most)
            with_room[room] -= filled
            with_room[room - most * size] += filled
            left -= filled * most
            if left and with_room[room]:  # fewer pieces than this row could take
                with_room[room] -= 1
                with_room[room - left * size] += 1
                left = 0
        if left:
            most = context // size
            count += (left + most - 1) // most
            with_room[context - most * size] += left // most
            if left % most:
                with_room[context - left % most * size] += 1
    return count


# Compiled whenever this module is loaded. numba's cache would be pickles beside the code, and nothing verifies those.
best_fit_compiled: Callable[[Int64, int], Int64] = numba.njit("(int64[::1], int64)")(best_fit)
count_rows_compiled: Callable[[Int64, int], int] = numba.njit("int64(int64[::1], int64)")(rows_of_sizes)
