"""Whose turn it is."""

from dataclasses import dataclass

import pytest

from kandinsky5.errors import CapacityError
from kandinsky5.service.line import FullLineError, Line


@dataclass(eq=False)
class Entry:
    key: str
    name: str = ""
    priority: int = 0
    weight: int = 1


def order(line: Line[Entry]) -> list[str]:
    found = []
    while (entry := line.next()) is not None:
        found.append(entry.name)
    return found


def test_one_key_is_served_in_order() -> None:
    line: Line[Entry] = Line(9, 9)
    for name in "abc":
        line.add(Entry("k", name))
    assert len(line) == 3 and order(line) == ["a", "b", "c"] and len(line) == 0


def test_keys_take_turns_however_much_one_asks() -> None:
    line: Line[Entry] = Line(99, 99)
    for number in range(4):
        line.add(Entry("many", f"many{number}"))
    line.add(Entry("few", "few0"))
    line.add(Entry("few", "few1"))
    assert order(line) == ["many0", "few0", "many1", "few1", "many2", "many3"]


def test_turns_are_counted_in_pictures() -> None:
    line: Line[Entry] = Line(99, 99)
    line.add(Entry("large", "L0", weight=3))
    line.add(Entry("large", "L1", weight=3))
    for number in range(4):
        line.add(Entry("small", f"s{number}"))
    assert order(line) == ["L0", "s0", "s1", "s2", "L1", "s3"]


def test_a_key_that_comes_late_gets_no_credit_for_what_it_did_not_ask() -> None:
    line: Line[Entry] = Line(99, 99)
    for number in range(6):
        line.add(Entry("early", f"e{number}"))
    assert [line.next().name for _ in range(3)] == ["e0", "e1", "e2"]  # type: ignore[union-attr]
    for number in range(3):
        line.add(Entry("late", f"l{number}"))
    assert order(line) == ["e3", "l0", "e4", "l1", "e5", "l2"]


@pytest.mark.parametrize("ends", ["served", "cancelled"])
def test_what_a_key_draws_while_nobody_waits_is_no_debt(ends: str) -> None:
    """It has drawn 200 alone, one at a time, when another comes with many: they take turns from the first on."""
    line: Line[Entry] = Line(999, 999)
    for number in range(200):
        line.add(Entry("alone", f"alone{number}"))
        line.next()
    if ends == "cancelled":
        given_up = Entry("alone")
        line.add(Entry("alone"))
        line.add(given_up)
        line.next()
        line.remove(given_up)
    for number in range(3):
        line.add(Entry("many", f"many{number}"))
    line.add(Entry("alone", "alone!"))
    assert order(line) == ["many0", "alone!", "many1", "many2"]


def test_what_a_key_draws_while_others_wait_is_counted_until_nobody_waits() -> None:
    """Also where it leaves the line in between, and where the others are served alone meanwhile."""
    line: Line[Entry] = Line(99, 99)
    line.add(Entry("large", "L0", weight=3))
    for number in range(4):
        line.add(Entry("small", f"s{number}"))
    assert [line.next().name for _ in range(2)] == ["L0", "s0"]  # type: ignore[union-attr]
    line.add(Entry("large", "L1", weight=3))
    assert [line.next().name for _ in range(3)] == ["s1", "s2", "s3"]  # type: ignore[union-attr]
    line.add(Entry("small", "s4"))
    assert order(line) == ["L1", "s4"], "as much for each by now"


def test_priority_orders_the_entries_of_its_own_key_only() -> None:
    line: Line[Entry] = Line(99, 99)
    line.add(Entry("a", "a-low"))
    line.add(Entry("a", "a-high", priority=5))
    line.add(Entry("b", "b0"))
    assert order(line) == ["a-high", "b0", "a-low"]


def test_a_full_line_refuses_and_says_whose_fault_it_is() -> None:
    line: Line[Entry] = Line(3, 2)
    line.add(Entry("a"))
    line.add(Entry("a"))
    with pytest.raises(FullLineError, match="2 requests of this key") as own:
        line.add(Entry("a"))
    line.add(Entry("b"))
    with pytest.raises(CapacityError, match="All 3 places") as all_:
        line.add(Entry("c"))
    assert (own.value.own, all_.value.own) == (True, False)  # type: ignore[attr-defined]


def test_an_entry_can_leave_from_anywhere() -> None:
    line: Line[Entry] = Line(9, 9)
    entries = [Entry("k", name) for name in "abc"]
    for entry in entries:
        line.add(entry)
    assert line.remove(entries[1]) and not line.remove(entries[1])
    assert order(line) == ["a", "c"]
