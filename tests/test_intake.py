"""Which batch of a session may come next: every row of the table, and its whole domain."""

import itertools

import pytest

from logd import intake
from logd.intake import FOLLOWED_MAX, Decision, Intake, Progress, decide
from logd.local.store import Store
from logd.shared import protocol
from logd.shared.etag import etag
from logd.shared.protocol import Check, Committed, Dropped, Gap, Outcomes, Reason, Refused, Transaction
from tests.support.builders import A, B, batch


def progress(accepted=-1, *, pending=0, refused=-1):
    made = Progress(accepted)
    made.pending, made.refused = pending, refused
    return made


# Each row: number, base, the last number applied (None: no such session), progress -------------------------

ROWS = {
    "a session that was never opened": (1, 1, None, progress(), Decision.UNKNOWN_SESSION),
    "a session whose opening is on its way": (1, 1, None, progress(0, pending=1), Decision.UNKNOWN_SESSION),
    "the opening of a session that was dropped since": (0, 0, None, progress(0), Decision.UNKNOWN_SESSION),
    "the last that was applied": (4, 4, 4, progress(4), Decision.APPLIED),
    "one before that": (0, 0, 4, progress(6, pending=2), Decision.APPLIED),
    "one that is on its way": (6, 5, 4, progress(6, pending=2), Decision.PENDING),
    "an opening that is on its way": (0, 0, None, progress(0, pending=1), Decision.PENDING),
    "the refused one": (5, 5, 4, progress(4, refused=5), Decision.AFTER_REFUSAL),
    "one sent before the refusal was known": (6, 5, 4, progress(4, refused=5), Decision.AFTER_REFUSAL),
    "one too far": (6, 5, 4, progress(4), Decision.OUT_OF_ORDER),
    "one whose base is still to come": (7, 6, 4, progress(4, refused=5), Decision.OUT_OF_ORDER),
    "an opening": (0, 0, None, progress(), Decision.NEXT),
    "one more than the last": (7, 5, 4, progress(6, pending=2), Decision.NEXT),
    "the base, after numbers that were refused": (7, 7, 4, progress(4, refused=6), Decision.NEXT),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_batch_is_decided_by_this_row(row):
    number, base, applied, state, decision = row
    assert decide(number, base, applied, state) is decision


def test_the_rows_and_the_table_have_every_label():
    assert {row[-1] for row in ROWS.values()} == set(Decision)
    for decision in Decision:
        assert f"| {decision.name} " in intake.__doc__


def test_over_the_whole_domain_only_the_next_batch_is_accepted_and_nothing_is_applied_twice():
    """Every choice of numbers up to 4 that can occur: base <= number, and applied <= accepted while in the state."""
    small = range(5)
    walked = set()
    for number, base, applied, accepted, refused, pending in itertools.product(
        small, small, [None, *small], [-1, *small], [-1, *small], [0, 1]
    ):
        if base > number or (applied is not None and applied > accepted):
            continue
        if pending == (applied == accepted) or (pending and accepted < 0):
            continue  # something is on its way exactly when more was accepted than applied
        state = progress(accepted, pending=pending, refused=refused)
        decision = decide(number, base, applied, state)
        walked.add(decision)
        if decision is Decision.NEXT:
            assert number > accepted
            assert base > refused
            assert number == base or number == accepted + 1
            assert applied is not None or number == 0
        elif decision is Decision.APPLIED:
            assert number <= applied
        elif decision is Decision.PENDING:
            assert pending
            assert (-1 if applied is None else applied) < number <= accepted
        elif decision is Decision.UNKNOWN_SESSION:
            assert applied is None
        else:
            assert number > accepted
            assert (base <= refused) == (decision is Decision.AFTER_REFUSAL)
        assert vars_of(state) == (accepted, pending, refused), "to decide changes nothing"
    assert walked == set(Decision)


def vars_of(state):
    return state.accepted, state.pending, state.refused


# What is done with it --------------------------------------------------------------------------------------


@pytest.fixture
def store():
    """With session A open."""
    store = Store()
    store.apply(batch(A, 0))
    return store


def submit(intake, session, number, *, base=None, **writes):
    made = batch(session, number, base=number if base is None else base, **writes)
    return intake.submit(protocol.encode(made), made)


def take(intake, bytes_max=1 << 20):
    return intake.take_group(bytes_max)


def apply_to(store, intake, group):
    for _, each in group:
        store.apply(each)
    intake.settle(group)


def test_every_decision_has_its_reply(store):
    intake = Intake(store)
    assert submit(intake, B, 1) == Dropped(B, 1)
    assert submit(intake, A, 0) == Committed(A, [0])
    assert submit(intake, A, 2, base=1) == Gap(A, 2, 1)
    assert submit(intake, A, 1) is None
    assert submit(intake, A, 1) is None  # pending
    assert intake.refuse(take(intake), Reason.NO_SPACE) == [(A, Refused(A, [1], Reason.NO_SPACE))]
    assert submit(intake, A, 2, base=1) == Refused(A, [2], Reason.NO_SPACE)
    assert submit(intake, A, 3, base=3) is None


def test_a_repeat_of_what_waits_does_not_wait_twice(store):
    intake = Intake(store)
    submit(intake, A, 1)
    submit(intake, A, 1)
    assert [each.batch.number for each in take(intake)] == [1]
    assert intake.is_empty()


def test_batches_are_taken_in_the_order_in_which_they_came_and_no_more_than_fit(store):
    intake = Intake(store)
    store.apply(batch(B, 0))
    for session, number in [(A, 1), (B, 1), (A, 2)]:
        submit(intake, session, number, puts={"k": bytes(1000)})
    assert [(each.batch.session, each.batch.number) for each in take(intake, 2500)] == [(A, 1), (B, 1)]
    assert [(each.batch.session, each.batch.number) for each in take(intake, 2500)] == [(A, 2)]
    assert take(intake) == []


def test_what_was_refused_may_be_sent_under_another_number(store):
    intake = Intake(store)
    assert submit(intake, A, 1, puts={"k": b"1"}) is None
    intake.refuse(take(intake), Reason.NO_SPACE)
    assert submit(intake, A, 2, base=1) == Refused(A, [2], Reason.NO_SPACE)
    assert submit(intake, A, 3, base=3, puts={"k": b"2"}) is None
    apply_to(store, intake, take(intake))
    assert store.data == {"k": b"2"}


def test_what_waits_may_be_refused_while_what_was_taken_before_it_is_on_its_way(store):
    intake = Intake(store)
    submit(intake, A, 1, base=1)
    in_flight = intake.take(1)
    submit(intake, A, 2, base=1)
    assert intake.refuse(intake.take(1), Reason.UNREACHABLE) == [(A, Refused(A, [2], Reason.UNREACHABLE))]
    assert submit(intake, A, 1, base=1) is None  # it is still on its way
    assert submit(intake, A, 3, base=1) == Refused(A, [3], Reason.UNREACHABLE)
    apply_to(store, intake, in_flight)
    assert submit(intake, A, 1, base=1) == Committed(A, [1])
    assert submit(intake, A, 4, base=4) is None


def test_a_repeat_of_what_was_applied_gets_the_outcomes_that_it_had(store):
    intake = Intake(store)
    transaction = Transaction([Check("k", None, negated=True)], {"k": b"1"}, [])
    for number in (1, 2):
        submit(intake, A, number, base=1, transactions=[transaction])
    apply_to(store, intake, take(intake))
    assert submit(intake, A, 1, base=1) == Committed(A, [1])
    failed = {2: Outcomes([], {0: [(0, etag(b"1"))]})}
    for _ in range(2):
        assert submit(intake, A, 2, base=1) == Committed(A, [2], failed)


def test_sessions_that_were_dropped_are_forgotten_and_those_on_their_way_are_not(store):
    intake = Intake(store)
    strangers = [b"%016d" % number for number in range(FOLLOWED_MAX + 1000)]
    assert submit(intake, B, 0) is None
    for stranger in strangers:
        submit(intake, stranger, 1)
    assert len(intake._sessions) <= FOLLOWED_MAX + 1
    assert submit(intake, B, 0) is None
    apply_to(store, intake, take(intake))
    assert submit(intake, B, 0) == Committed(B, [0])
