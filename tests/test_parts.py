"""How a file is dealt out to connections: little is at risk at once, and all end at about the same time."""

import heapq
import itertools

import pytest

from omz_tools.download.parts import LARGEST_PART, SHORTEST_PART, Part, Parts

MIB = 1 << 20
LARGE = 548_105_171


def taken(parts: Parts, brought: int = 0) -> Part:
    part = parts.take(brought)
    assert part
    return part


def dealt_out(parts: Parts) -> list[tuple[int, int]]:
    """All parts, to connections that have brought nothing."""
    return [(part.first, part.end) for part in iter(lambda: parts.take(0), None)]


@pytest.mark.parametrize("connections", [1, 2, 4, 16])
@pytest.mark.parametrize("holes", [[(0, LARGE)], [(5, 70 * MIB), (70 * MIB + 1, 400 * MIB)], [(LARGE - 1, LARGE)], []])
def test_everything_that_is_missing_is_dealt_out_once_and_in_order(
    holes: list[tuple[int, int]], connections: int
) -> None:
    parts = Parts(LARGE, holes, connections)
    assert parts.missing == sum(end - first for first, end in holes)
    out = dealt_out(parts)
    assert parts.missing == 0
    joined = [
        (first, end)
        for first, end in itertools.pairwise([edge for part in out for edge in part])
        if (first, end) not in out and first != end
    ]
    assert sum(end - first for first, end in out) == sum(end - first for first, end in holes)
    assert joined == [(end, first) for (_, end), (first, _) in itertools.pairwise(holes)]


@pytest.mark.parametrize("slow", [1.0, 0.9, 0.8])
def test_connections_end_at_about_the_same_time(slow: float) -> None:
    """Four connections at 20 MB/s, or one of them at less, whose next parts are taken when they have the last ones."""
    parts = Parts(LARGE, [(0, LARGE)], 4)
    paces = [slow * 20e6, 20e6, 20e6, 20e6]
    turns = [(0.0, number, 0) for number in range(4)]
    ends, asked = [0.0] * 4, 0
    while turns:
        at, number, brought = heapq.heappop(turns)
        part = parts.take(brought)
        if part:
            asked += 1
            assert part.missing <= LARGEST_PART
            heapq.heappush(turns, (at + part.missing / paces[number], number, brought + part.missing))
        else:
            ends[number] = at
    assert max(ends) <= 1.05 * LARGE / sum(paces)
    # What a request costs by itself must stay little.
    assert asked <= 40


@pytest.mark.parametrize("size", [17 * MIB, 32 * MIB, 100 * MIB])
def test_connections_that_are_all_reset_lose_little_of_a_file(size: int) -> None:
    parts = Parts(size, [(0, size)], 4)
    assert sum(taken(parts).missing for _ in range(4)) <= size // 8


def test_after_a_fault_what_is_asked_for_at_once_is_little_of_what_came_since_the_last_one() -> None:
    parts = Parts(LARGE, [(0, LARGE)], 4)
    parts.beware(MIB)
    assert taken(parts).missing == SHORTEST_PART
    parts.beware(16 * MIB)
    assert taken(parts).missing == MIB
    # It grows with what comes, and when it is more than a connection's buffer, that is all that can be lost.
    assert taken(parts, 32 * MIB).missing == 2 * MIB
    assert taken(parts, 64 * MIB).missing == LARGEST_PART


def test_a_file_that_is_not_worth_sharing_is_one_part() -> None:
    assert Parts(2 * MIB, [(0, 2 * MIB)], 4).connections == 1
    assert dealt_out(Parts(2 * MIB, [(0, 2 * MIB)], 4)) == [(0, 2 * MIB)]
    assert dealt_out(Parts(LARGE, [(0, LARGE)], 1)) == [(0, LARGE)]


def test_what_is_given_back_comes_next_and_without_what_has_come() -> None:
    parts = Parts(LARGE, [(0, LARGE)], 4)
    first, second = taken(parts), taken(parts)
    first.advance(MIB)
    parts.give_back(first)
    again = taken(parts)
    assert (again.first, again.end) == (MIB, second.first)
    second.advance(second.missing)
    parts.give_back(second)
    assert taken(parts).first == second.end


def test_a_part_grows_by_what_is_missing_right_behind_it() -> None:
    parts = Parts(LARGE, [(0, 80 * MIB), (90 * MIB, LARGE)], 4)
    parts.extend(part := taken(parts))
    assert (part.first, part.end) == (0, 80 * MIB)
    parts.begin_anew(part)
    assert (part.first, part.end, parts.missing) == (0, LARGE, 0)
