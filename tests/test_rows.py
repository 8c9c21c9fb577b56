"""Rows change by compare-and-set: every transition, epochs, quotas, and answers that were lost."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_async_upload.exceptions import (
    AuthenticationRequired,
    Busy,
    ByteQuotaExceeded,
    DataLost,
    KeyReused,
    NotFound,
    SessionQuotaExceeded,
    TakenOver,
    UploadOver,
)
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.quotas import Growth
from django_async_upload.sessions.state import ACTIVE, OVER, PUBLISHED, SOURCES, State
from django_async_upload.sessions.values import (
    Adoption,
    Change,
    Creation,
    Ending,
    HolderQuery,
    UploadAccess,
)
from django_async_upload.stores.base import Checkpoint

from .fixtures import Heard, new_key

pytest_plugins = ["tests.fixtures"]

ENDINGS = sorted(OVER)
CHANGES = sorted(set(State) - OVER - {State.CREATED, State.COMPLETED, State.BOUND})


def make(owner: Owner, **fields: Any) -> UploadSession:
    """A session that is not saved."""
    return UploadSession(
        **{
            "key": new_key(),
            "endpoint": "default",
            "owner_id": owner.user_id,
            "owner_key": owner.key,
            "name": "a.bin",
            "size": 100,
            **fields,
        }
    )


def saved(owner: Owner, **fields: Any) -> UploadSession:
    session = make(owner, **fields)
    session.save(force_insert=True)
    return session


def state_of(session: UploadSession) -> str:
    return UploadSession.objects.get(pk=session.pk).state


# Transitions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted(State))
@pytest.mark.parametrize("target", sorted(State))
def test_a_row_enters_a_state_only_from_where_the_table_allows(
    owner: Owner, source: State, target: State
) -> None:
    session = saved(owner, state=source)
    changed = UploadSession.objects.transition([session.pk], target)
    assert changed == (source in SOURCES[target])
    assert state_of(session) == (target if changed else source)


@pytest.mark.parametrize("source", sorted(State))
@pytest.mark.parametrize("target", CHANGES)
def test_a_holder_changes_the_state_or_gets_the_error(
    owner: Owner, source: State, target: State
) -> None:
    session = saved(owner, state=source)
    (outcome,) = rows.change([Change(session.pk, session.epoch, target, {"durable": 7})])
    session.refresh_from_db()
    if source in SOURCES[target]:
        assert outcome is None
        assert (session.state, session.durable) == (target, 7)
    else:
        # The same change once more is one whose commit was not answered.
        assert (outcome is None) == (source == target)
        assert isinstance(outcome, UploadOver) == (source in OVER)
        assert isinstance(outcome, TakenOver) == (source not in OVER | {target})
        assert (session.state, session.durable) == (source, 0)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("target", CHANGES)
def test_an_old_epoch_changes_nothing(owner: Owner, target: State, is_there: bool) -> None:
    """Nor does the old holder where the new one has made the same change."""
    source = target if is_there else min(SOURCES[target])
    session = saved(owner, state=source, epoch=3)
    (outcome,) = rows.change([Change(session.pk, 2, target, {"durable": 7})])
    is_published = is_there and target == State.FINALIZING
    assert isinstance(outcome, Busy if is_published else TakenOver)
    session.refresh_from_db()
    assert (session.state, session.epoch, session.durable) == (source, 3, 0)


def checkpoint_of(session: UploadSession, offset: int, epoch: int = 1) -> Change:
    values = rows.checkpoint_values(Checkpoint(f"p{offset}", offset, offset + 1, "t"))
    return Change(session.pk, epoch, State.UPLOADING, values)


def test_checkpoints_of_many_uploads_are_one_statement(owner: Owner) -> None:
    sessions = [saved(owner, state=State.UPLOADING, epoch=1 + number % 3) for number in range(100)]
    changes = [checkpoint_of(each, number, each.epoch) for number, each in enumerate(sessions)]
    with CaptureQueriesContext(connection) as queries:
        assert rows.change(changes) == [None] * len(changes)
    assert len(queries) == 1
    for number, session in enumerate(sessions):
        session.refresh_from_db()
        assert session.checkpoint == Checkpoint(f"p{number}", number, number + 1, "t")
        assert session.expires_at == changes[number].values["expires_at"]


def test_among_many_checkpoints_an_outdated_holder_is_told_and_the_others_are_saved(
    owner: Owner,
) -> None:
    sessions = [saved(owner, state=State.UPLOADING) for _ in range(5)]
    UploadSession.objects.filter(pk=sessions[2].pk).update(epoch=2)
    outcomes = rows.change([checkpoint_of(each, 7) for each in sessions])
    assert [type(each) for each in outcomes] == [
        TakenOver if number == 2 else type(None) for number in range(5)
    ]
    for session in sessions:
        session.refresh_from_db()
    assert [each.durable for each in sessions] == [7, 7, 0, 7, 7]


def test_a_change_of_a_row_that_is_gone(owner: Owner) -> None:
    (outcome,) = rows.change([Change(uuid.uuid4(), 1, State.UPLOADING)])
    assert isinstance(outcome, NotFound)


def test_a_change_says_what_an_upload_failed_with(owner: Owner) -> None:
    session = saved(owner, state=State.FAILED, error=DataLost.code)
    (outcome,) = rows.change([Change(session.pk, 1, State.UPLOADING)])
    assert isinstance(outcome, DataLost)


def test_a_refused_change_leaves_the_others_of_its_group(owner: Owner) -> None:
    good, bad = saved(owner), saved(owner, epoch=9)
    items = [Change(each.pk, 1, State.UPLOADING, {"durable": 5}) for each in (good, bad, good)]
    outcomes = rows.change(items)
    assert outcomes[0] is outcomes[2] is None
    assert isinstance(outcomes[1], TakenOver)
    assert state_of(good) == State.UPLOADING


def test_a_change_may_depend_on_its_owner(owner: Owner) -> None:
    session, other = saved(owner), saved(owner)
    get_user_model().objects.filter(pk=owner.user_id).update(is_active=False)
    outcomes = rows.change(
        [
            Change(session.pk, 1, State.FINALIZING, owner=owner),
            Change(other.pk, 1, State.UPLOADING),
        ]
    )
    assert isinstance(outcomes[0], AuthenticationRequired)
    assert outcomes[1] is None
    assert (state_of(session), state_of(other)) == (State.CREATED, State.UPLOADING)


# Endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted(State))
@pytest.mark.parametrize("target", ENDINGS)
def test_an_upload_ends_only_before_it_is_published(
    owner: Owner, source: State, target: State
) -> None:
    long_ago = timezone.now() - timedelta(days=9)
    session = saved(owner, state=source, part="p", expires_at=long_ago)
    ((ended, changed),) = rows.end([Ending(session.pk, target, error=DataLost())])
    session.refresh_from_db()
    assert changed == (source in SOURCES[target] - PUBLISHED)
    assert ended.state == session.state == (target if changed else source)
    if changed:
        assert ended.part == "p"  # for the caller to delete
        assert (session.part, session.error, session.epoch) == ("", "data_lost", 2)
    else:
        assert (session.part, session.error, session.epoch) == ("p", "", 1)


def test_an_old_holder_cannot_end_an_upload(owner: Owner) -> None:
    session = saved(owner, state=State.UPLOADING, epoch=2)
    (outcome,) = rows.end([Ending(session.pk, State.FAILED, epoch=1)])
    assert isinstance(outcome, TakenOver)
    assert state_of(session) == State.UPLOADING


def test_ending_again_after_a_lost_commit_gives_the_same_end(owner: Owner) -> None:
    session = saved(owner, state=State.UPLOADING)
    ending = Ending(session.pk, State.FAILED, error=DataLost(), epoch=1)
    assert rows.end([ending])[0][1] is True
    ended, changed = rows.end([ending])[0]
    assert (ended.state, ended.error, changed) == (State.FAILED, "data_lost", True)
    ended, changed = rows.end([Ending(session.pk, State.FAILED, epoch=1)])[0]
    assert (ended.state, ended.error, changed) == (State.FAILED, "data_lost", False)


def test_the_end_of_a_row_that_is_gone(owner: Owner) -> None:
    (outcome,) = rows.end([Ending(uuid.uuid4(), State.CANCELLED)])
    assert isinstance(outcome, NotFound)


# Claims -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted(State))
def test_a_takeover_takes_an_open_upload_and_answers_with_the_others(
    owner: Owner, source: State
) -> None:
    session = saved(owner, state=source)
    (outcome,) = rows.take_over([UploadAccess(session.pk, owner, "default")])
    session.refresh_from_db()
    if source in OVER:
        assert isinstance(outcome, UploadOver)
        assert (session.state, session.epoch) == (source, 1)
    elif source in PUBLISHED | {State.FINALIZING}:
        assert outcome.state == source
        assert (session.state, session.epoch) == (source, 1)
    else:
        assert (outcome.state, outcome.epoch) == (State.UPLOADING, 2)
        assert (session.state, session.epoch) == (State.UPLOADING, 2)


def test_each_takeover_raises_the_epoch_and_the_newest_wins(owner: Owner) -> None:
    session = saved(owner)
    access = UploadAccess(session.pk, owner, "default")
    first, second = rows.take_over([access, access])
    assert (first.epoch, second.epoch) == (2, 3)
    older, newer = rows.change(
        [Change(session.pk, each.epoch, State.INTERRUPTED) for each in (first, second)]
    )
    assert isinstance(older, TakenOver)
    assert newer is None


def test_a_takeover_that_was_overtaken_looks_again(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = saved(owner)
    real = rows.find

    def overtaken(items: list[UploadAccess]) -> Any:
        found = real(items)
        monkeypatch.setattr(rows, "find", real)
        (other,) = rows.take_over(items)
        assert other.epoch == 2
        return found

    monkeypatch.setattr(rows, "find", overtaken)
    (outcome,) = rows.take_over([UploadAccess(session.pk, owner, "default")])
    assert outcome.epoch == 3


def test_a_takeover_has_the_last_checkpoint_of_the_old_holder(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is saved between the SELECT and the UPDATE, whose bytes the client forgets."""
    session = saved(owner, state=State.UPLOADING)
    real = rows.find

    def saves_meanwhile(items: list[UploadAccess]) -> Any:
        found = real(items)
        monkeypatch.setattr(rows, "find", real)
        values = rows.checkpoint_values(Checkpoint("part", 7))
        assert rows.change([Change(session.pk, 1, State.UPLOADING, values)]) == [None]
        return found

    monkeypatch.setattr(rows, "find", saves_meanwhile)
    (outcome,) = rows.take_over([UploadAccess(session.pk, owner, "default")])
    assert (outcome.epoch, outcome.part, outcome.durable) == (2, "part", 7)


@pytest.mark.parametrize("state", sorted(State))
def test_a_holder_continues_with_the_epoch_of_its_row(owner: Owner, state: State) -> None:
    error = {"error": "data_lost"} if state is State.FAILED else {}
    session = saved(owner, state=state, epoch=3, **error)
    gone = uuid.uuid4()
    kept, outdated, missing = rows.check_holders(
        [HolderQuery(session.pk, 3), HolderQuery(session.pk, 2), HolderQuery(gone, 1)]
    )
    assert kept is None
    assert isinstance(missing, NotFound)
    if state in PUBLISHED:
        assert outdated is None
    else:
        expected = DataLost if state is State.FAILED else UploadOver
        assert isinstance(outdated, expected if state in OVER else TakenOver)


def test_holders_are_checked_in_one_query_whatever_their_epochs(
    owner: Owner, django_assert_num_queries: Any
) -> None:
    sessions = [saved(owner, state=State.UPLOADING, epoch=1 + number) for number in range(20)]
    queries = [HolderQuery(session.pk, session.epoch) for session in sessions]
    with django_assert_num_queries(1):
        assert rows.check_holders(queries) == [None] * 20


def test_two_connections_that_attach_at_once_get_epochs_of_their_own(
    transactional_db: None, owner: Owner
) -> None:
    session = saved(owner)
    epochs: list[int] = []
    errors: list[BaseException] = []

    def claim_often() -> None:
        try:
            for _ in range(15):
                with transaction.atomic():
                    (outcome,) = rows.take_over([UploadAccess(session.pk, owner, "default")])
                    assert isinstance(outcome, UploadSession)
                epochs.append(outcome.epoch)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=claim_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(epochs) == list(range(2, 32))


@pytest.mark.parametrize("what", ["missing", "foreign", "elsewhere", "without an owner"])
@pytest.mark.parametrize("verb", [rows.take_over, rows.find])
def test_another_owners_upload_is_answered_like_a_missing_one(
    owner: Owner, bob: Any, verb: Any, what: str
) -> None:
    session = (
        saved(owner) if what != "without an owner" else saved(owner, owner_id=None, owner_key="")
    )
    stranger = Owner(f"user:{bob.pk}", bob)
    claims = {
        "missing": UploadAccess(uuid.uuid4(), owner, "default"),
        "foreign": UploadAccess(session.pk, stranger, "default"),
        "elsewhere": UploadAccess(session.pk, owner, "other"),
        "without an owner": UploadAccess(session.pk, owner, "default"),
    }
    (outcome,) = verb([claims[what]])
    assert isinstance(outcome, NotFound)
    assert outcome.message == NotFound().message
    assert not outcome.facts
    session.refresh_from_db()
    assert session.epoch == 1


@pytest.mark.parametrize("verb", [rows.take_over, rows.find])
def test_an_owner_who_is_no_more_is_refused_and_the_others_of_the_group_are_not(
    owner: Owner, bob: Any, verb: Any
) -> None:
    other = Owner(f"user:{bob.pk}", bob)
    mine, theirs = saved(owner), saved(other)
    get_user_model().objects.filter(pk=bob.pk).update(is_active=False)
    found, refused = verb(
        [UploadAccess(mine.pk, owner, "default"), UploadAccess(theirs.pk, other, "default")]
    )
    assert found.pk == mine.pk
    assert isinstance(refused, AuthenticationRequired)


# Creation -----------------------------------------------------------------------------------------


def create(owner: Owner, *sessions: UploadSession) -> list[Any]:
    return rows.create([Creation(session, owner) for session in sessions])


def test_a_new_key_makes_a_new_row(owner: Owner) -> None:
    session = make(owner)
    assert create(owner, session) == [session]
    assert state_of(session) == State.CREATED


def test_the_same_key_twice_in_a_group_is_one_upload(owner: Owner) -> None:
    first, second = make(owner), make(owner)
    second.key = first.key
    outcomes = create(owner, first, second)
    assert outcomes[0] is outcomes[1] is first
    assert UploadSession.objects.count() == 1


def test_the_same_key_in_a_later_group_gives_the_first_upload(owner: Owner) -> None:
    first, second = make(owner), make(owner)
    second.key = first.key
    create(owner, first)
    (found,) = create(owner, second)
    assert found is not second
    assert found.pk == first.pk


@pytest.mark.parametrize(
    ("fact", "value"),
    [("name", "b.bin"), ("size", 101), ("content_type", "text/plain"), ("digest", "sha-256")],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_same_key_with_other_facts_is_refused(
    owner: Owner, fact: str, value: Any, together: bool
) -> None:
    first = make(owner)
    second = make(owner, key=first.key, **{fact: value})
    outcomes = (
        create(owner, first, second)
        if together
        else [*create(owner, first), *create(owner, second)]
    )
    assert outcomes[0] is first
    assert isinstance(outcomes[1], KeyReused)
    assert outcomes[1].facts == {"field": fact}


def test_a_size_that_is_not_known_matches_the_one_that_the_finished_row_has(owner: Owner) -> None:
    session = saved(owner, size=100)
    (found,) = create(owner, make(owner, key=session.key, size=None))
    assert found.pk == session.pk


def test_a_key_belongs_to_its_owner_and_endpoint(owner: Owner, bob: Any) -> None:
    other = Owner(f"user:{bob.pk}", bob)
    first = make(owner)
    sessions = [
        first,
        make(owner, key=first.key, endpoint="other"),
        make(other, key=first.key),
    ]
    creations = [
        Creation(session, each)
        for session, each in zip(sessions, (owner, owner, other), strict=True)
    ]
    outcomes = rows.create(creations)
    assert all(outcome is session for outcome, session in zip(outcomes, sessions, strict=True))


def test_creating_again_after_a_lost_commit_finds_the_row(owner: Owner) -> None:
    session = make(owner)
    create(owner, session)
    (found,) = create(owner, session)
    assert found.pk == session.pk
    assert UploadSession.objects.count() == 1


def test_quotas_count_what_is_in_the_same_group(owner: Owner, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_SESSIONS": 3}
    saved(owner)
    saved(owner, state=State.COMPLETED)  # over: not open
    outcomes = create(owner, *(make(owner) for _ in range(4)))
    assert [type(each) for each in outcomes] == [UploadSession] * 2 + [SessionQuotaExceeded] * 2
    assert outcomes[2].facts == {"max_sessions": 3}


def test_bytes_are_declared_or_where_unknown_received(owner: Owner, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": 1000}
    saved(owner, size=400)
    saved(owner, size=None, durable=300, state=State.UPLOADING)
    saved(owner, size=900, state=State.CANCELLED)
    too_much, fits, no_more = create(owner, *(make(owner, size=size) for size in (301, 300, 1)))
    assert isinstance(too_much, ByteQuotaExceeded)
    assert too_much.facts == {"max_bytes": 1000, "open_bytes": 700}
    assert isinstance(fits, UploadSession)
    assert isinstance(no_more, ByteQuotaExceeded)


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        ({"ADDRESS_MAX_SESSIONS": 2}, SessionQuotaExceeded),
        ({"ADDRESS_MAX_BYTES": 200}, ByteQuotaExceeded),
    ],
)
def test_an_address_has_a_quota_over_all_its_owners(
    owner: Owner, bob: Any, settings: Any, limits: dict[str, int], refusal: type[Exception]
) -> None:
    settings.ASYNC_UPLOAD = limits
    other = Owner(f"user:{bob.pk}", bob)
    saved(owner, address="192.0.2.1")
    outcomes = rows.create(
        [
            Creation(make(other, address="192.0.2.1"), other),
            Creation(make(owner, address="192.0.2.1"), owner),
            Creation(make(owner, address="192.0.2.2"), owner),
        ]
    )
    assert isinstance(outcomes[1], refusal)
    assert isinstance(outcomes[0], UploadSession)
    assert isinstance(outcomes[2], UploadSession)


def test_uploads_of_unknown_size_grow_up_to_the_quota_together(owner: Owner, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": 1000}
    growing = [saved(owner, size=None, durable=300, state=State.UPLOADING) for _ in range(3)]
    good, refused, no_more = rows.change(
        [
            Change(
                session.pk,
                session.epoch,
                State.UPLOADING,
                {"durable": after},
                growth=Growth(owner.key, None, 300, after),
            )
            for session, after in zip(growing, (400, 301, 300), strict=True)
        ]
    )
    assert good is None
    assert isinstance(refused, ByteQuotaExceeded)
    assert no_more is None
    assert [UploadSession.objects.get(pk=each.pk).durable for each in growing] == [400, 300, 300]


def test_uploads_without_an_address_share_no_quota(owner: Owner, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"ADDRESS_MAX_SESSIONS": 1}
    outcomes = create(owner, make(owner), make(owner))
    assert all(isinstance(outcome, UploadSession) for outcome in outcomes)


def test_a_refused_creation_leaves_the_others_of_its_group(owner: Owner, bob: Any) -> None:
    other = Owner(f"user:{bob.pk}", bob)
    get_user_model().objects.filter(pk=bob.pk).update(is_active=False)
    mine, theirs = make(owner), make(other)
    created, refused = rows.create([Creation(mine, owner), Creation(theirs, other)])
    assert created is mine
    assert isinstance(refused, AuthenticationRequired)
    assert UploadSession.objects.count() == 1


# Completion ---------------------------------------------------------------------------------------


def finalizing(owner: Owner, **fields: Any) -> UploadSession:
    return saved(owner, state=State.FINALIZING, part="p", stored_as="a.bin", **fields)


def test_a_completion_writes_its_event_in_the_same_transaction(owner: Owner, heard: Heard) -> None:
    session = finalizing(owner, expires_at=timezone.now())
    (event,) = rows.complete([session])
    session.refresh_from_db()
    assert (session.state, session.part, session.expires_at) == (State.COMPLETED, "", None)
    assert session.completed_at is not None
    kept = CompletionEvent.objects.get(session=session)
    assert kept.pk == event.pk
    assert kept.delivered_at is None
    assert timezone.now() < kept.due_at <= timezone.now() + rows.CLAIM


def test_a_completion_without_a_receiver_is_delivered_already(owner: Owner) -> None:
    (event,) = rows.complete([finalizing(owner)])
    assert event.delivered_at is not None


def test_completing_again_gives_the_same_event(owner: Owner) -> None:
    session, other = finalizing(owner), finalizing(owner)
    (first,) = rows.complete([session])
    again, new = rows.complete([session, other])
    assert again.pk == first.pk
    assert new.session_id == other.pk
    assert CompletionEvent.objects.count() == 2


def test_completing_twice_in_one_group_is_one_event(owner: Owner) -> None:
    session = finalizing(owner)
    first, second = rows.complete([session, session])
    assert first.pk == second.pk
    assert CompletionEvent.objects.count() == 1


@pytest.mark.parametrize("state", sorted(ACTIVE - {State.FINALIZING} | OVER))
def test_nothing_but_finalizing_is_completed(owner: Owner, state: State) -> None:
    good, bad = finalizing(owner), saved(owner, state=state)
    event, refused = rows.complete([good, bad])
    assert event.session_id == good.pk
    assert isinstance(refused, UploadOver if state in OVER else TakenOver)
    assert state_of(bad) == state
    assert CompletionEvent.objects.count() == 1


@pytest.mark.parametrize("state", [State.FINALIZING, State.COMPLETED, State.BOUND])
def test_a_publication_that_was_adopted_is_not_completed_by_its_old_holder(
    owner: Owner, state: State
) -> None:
    good, session = finalizing(owner), finalizing(owner)
    UploadSession.objects.filter(pk=session.pk).update(epoch=2, state=state)
    event, refused = rows.complete([good, session])
    assert event.session_id == good.pk
    assert isinstance(refused, Busy)
    assert state_of(session) == state
    assert CompletionEvent.objects.count() == 1


def test_one_of_two_processes_adopts_a_publication(owner: Owner) -> None:
    session = finalizing(owner)
    first, second = (Adoption(session.pk, session.epoch, "p-1") for _ in range(2))
    (adopted,) = rows.adopt([first])
    assert (adopted.epoch, adopted.part, adopted.state) == (2, "p-1", State.FINALIZING)
    (refused,) = rows.adopt([second])
    assert isinstance(refused, Busy)
    (again,) = rows.adopt([first])  # after a COMMIT without an answer
    assert again.epoch == 2


@pytest.mark.parametrize("state", sorted(set(State) - {State.FINALIZING}))
def test_only_a_publication_is_adopted(owner: Owner, state: State) -> None:
    session = saved(owner, state=state)
    (refused,) = rows.adopt([Adoption(session.pk, session.epoch, "p-1")])
    assert isinstance(refused, UploadOver if state in OVER else Busy)
    session.refresh_from_db()
    assert (session.state, session.epoch, session.part) == (state, 1, "")


def test_a_row_that_is_gone_is_not_adopted(owner: Owner) -> None:
    (refused,) = rows.adopt([Adoption(uuid.uuid4(), 1, "p-1")])
    assert isinstance(refused, NotFound)


def test_a_row_that_is_gone_is_not_completed(owner: Owner) -> None:
    good, gone = finalizing(owner), finalizing(owner)
    UploadSession.objects.filter(pk=gone.pk).delete()
    event, refused = rows.complete([good, gone])
    assert event.session_id == good.pk
    assert isinstance(refused, NotFound)


def test_an_open_upload_lives_for_as_long_as_the_setting_says(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"EXPIRE_AFTER": 60}
    assert timedelta(seconds=59) < rows.expiry() - timezone.now() <= timedelta(seconds=60)
    lives_until = rows.checkpoint_values(Checkpoint("part", 5, 1, "boot"))["expires_at"]
    assert timedelta(seconds=59) < lives_until - timezone.now() <= timedelta(seconds=60)


@pytest.mark.parametrize("fields", [{"part": "part"}, {"state": State.UPLOADING}])
def test_an_upload_that_a_client_knows_is_not_forgotten(owner: Owner, fields: Any) -> None:
    known, new = saved(owner, **fields), saved(owner)
    rows.delete_new([known.pk, new.pk])
    assert list(UploadSession.objects.all()) == [known]


@pytest.mark.skipif(connection.vendor == "sqlite", reason="its writers take turns")
def test_a_race_for_a_key_in_another_connection_is_an_integrity_error(
    transactional_db: None, owner: Owner
) -> None:
    session = make(owner)
    inserted = threading.Event()

    def insert_meanwhile() -> None:
        saved(owner, key=session.key)
        inserted.set()
        connections.close_all()

    original = UploadSession.objects.bulk_create

    def race(sessions: Any) -> Any:
        thread = threading.Thread(target=insert_meanwhile)
        thread.start()
        thread.join()
        return original(sessions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(UploadSession.objects), "bulk_create", lambda self, new: race(new))
        with pytest.raises(IntegrityError), transaction.atomic():
            create(owner, session)
    assert connection.is_usable()
    with transaction.atomic():  # as the database thread does: see test_database
        (found,) = create(owner, session)
    assert found.pk != session.pk
    assert found.key == session.key


def test_keys_are_looked_up_by_the_whole_unique_index(owner: Owner) -> None:
    """Otherwise each create reads every row that its owner ever had."""
    with CaptureQueriesContext(connection) as queries:
        rows.create([Creation(make(owner), owner)])
    quoted = connection.ops.quote_name
    columns = [f"{quoted(column)} IN" for column in ("endpoint", "owner_key", "key")]
    (lookup,) = (each["sql"] for each in queries if columns[0] in each["sql"])
    assert all(column in lookup for column in columns)
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            plan = cursor.execute(f"EXPLAIN QUERY PLAN {lookup}").fetchall()
        assert "endpoint=? AND owner_key=? AND key=?" in str(plan)
