"""Who is who: the best one-to-one matching of people and faces, in which somebody may be missing (exact)."""

import numpy as np


def match(worth_NM: np.ndarray, missing: float) -> list[int | None]:
    """The column of every row, so that the worths add up to the most; None: left out, worth `missing`.

    A worth of −inf forbids the pair.
    """
    rows, columns = worth_NM.shape
    # Each row has a way out of its own; the largest finite number forbids, since inf − inf is no number.
    worth = np.full((rows, columns + rows), float(missing))
    worth[:, :columns] = worth_NM
    bound = 2 * (1 + np.abs(worth[np.isfinite(worth)]).sum())
    chosen = assign(np.where(np.isfinite(worth), -worth, bound))
    return [int(column) if column < columns else None for column in chosen]


def assign(cost_NM: np.ndarray) -> np.ndarray:
    """The Hungarian method: a column of its own for every row, at the least sum of costs; N ≤ M.

    Shortest augmenting paths with potentials (Jonker and Volgenant 1987), O(N² M).
    """
    rows, columns = cost_NM.shape
    assert rows <= columns, "a column for every row"
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for row in range(rows):
        # From this row along reduced costs, all of them ≥ 0, to the nearest column that is free.
        distance, came_from = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        at, column, passed = row, -1, 0.0
        while True:
            through = passed + cost_NM[at] - row_price[at] - column_price
            nearer = ~done & (through < distance)
            distance[nearer], came_from[nearer] = through[nearer], column
            column = int(np.where(done, np.inf, distance).argmin())
            passed = distance[column]
            if row_of[column] < 0:
                break
            done[column], at = True, row_of[column]
        row_price[row_of[done]] += passed - distance[done]
        row_price[row] += passed
        column_price[done] -= passed - distance[done]
        while column >= 0:  # hand the columns on along the path
            before = came_from[column]
            row_of[column] = row if before < 0 else row_of[before]
            column = before
    column_of = np.empty(rows, dtype=int)
    column_of[row_of[row_of >= 0]] = np.flatnonzero(row_of >= 0)
    return column_of
