"""The digest covers everything that decisions were made from."""

from fastcache_xdit.parallel.ledger import Entry, Ledger

ENTRY = Entry(3, "fused", None, "a.1", True, "insignificant", 0.1, 0.01)


def stamp(*entries, premise="same"):
    ledger = Ledger(premise)
    for entry in entries:
        ledger.record(entry)
    return ledger.stamp


def test_equal_pages_have_equal_stamps_that_a_float_can_carry():
    assert stamp(ENTRY) == stamp(ENTRY)
    assert stamp(ENTRY) == int(float(stamp(ENTRY))) < 2**52


def test_any_difference_shows():
    others = [
        ENTRY._replace(skip=False),
        ENTRY._replace(change=0.1 + 1e-17 + 1e-16),
        ENTRY._replace(patch=0),
        ENTRY._replace(tokens=4),
    ]
    stamps = {stamp(ENTRY), stamp(ENTRY, premise="other"), stamp(), stamp(ENTRY, ENTRY), *map(stamp, others)}
    assert len(stamps) == 8


def test_a_new_request_starts_a_new_page():
    ledger = Ledger("same")
    empty = ledger.stamp
    ledger.record(ENTRY)
    page = ledger.entries
    ledger.begin_request()
    assert ledger.stamp == empty and ledger.entries == [] and page == [ENTRY], "a page that was handed out stays"


def test_the_choice_leaves_statistics_out():
    assert ENTRY.choice == ENTRY._replace(change=0.2, reason="other").choice == (3, "fused", None, "a.1", True, False)


def test_what_is_found_out_later_counts_as_well():
    ledger = Ledger("same")
    ledger.record(ENTRY)
    before = ledger.stamp
    ledger.amend(tokens=8)
    assert ledger.entries == [ENTRY._replace(tokens=8)] and ledger.stamp != before
