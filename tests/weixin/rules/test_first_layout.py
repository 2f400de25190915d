"""A state directory of the first version, whose records are taken over one by one."""

import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from filelock import FileLock

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import AUTHORIZATION_CODEC, Authorization
from prefetch_kit.weixin.component import Tickets
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, Store, StoredToken

PLATFORM = "wxplatform"
RECORD = "granted-to-wxplatform"
WECHAT = "api.weixin.qq.com"

Write = Callable[..., Path]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def write(state: Path) -> Write:
    """`write(account, name, **members)`: a record as the first version wrote it."""

    def write(account: str, name: str, *, host: str = WECHAT, **members: Any) -> Path:
        path = state / host / account / f"{name}.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.with_name("new").write_text(json.dumps(members))
        path.with_name("new").chmod(0o600)
        os.replace(path.with_name("new"), path)
        return path

    return write


def opened(state: Path, account: str = "wx01") -> Store[Authorization]:
    return FileStores(state / WECHAT).open(account, RECORD, AUTHORIZATION_CODEC)


def tickets(state: Path) -> Tickets:
    return Tickets(FileStores(state / WECHAT).open(PLATFORM, "ticket", TOKEN_CODEC))


def authorized(*tokens: str, since: float = 7.0, expires_at: float | None = None) -> dict[str, Any]:
    members: dict[str, Any] = {"refresh_tokens": list(tokens), "since": since}
    return members | (
        {} if expires_at is None else {"access_token": f"of-{tokens[0]}", "expires_at": expires_at}
    )


def refresh_tokens(store: Store[Authorization]) -> list[str]:
    kept = store.load()
    return [] if kept is None else [each.reveal() for each in kept.refresh_tokens]


def test_all_refresh_tokens_of_a_directory_are_taken_over(state: Path, write: Write) -> None:
    """From then on they are in the new file; the old files are as they were."""
    stores = FileStores(state / WECHAT)
    for n in range(200):
        write(f"wx{n:03}", RECORD, **authorized(f"new-{n}", f"old-{n}", expires_at=9.0))
    before = {path: path.read_bytes() for path in state.rglob("*.json")}
    for n in range(200):
        store = stores.open(f"wx{n:03}", RECORD, AUTHORIZATION_CODEC)
        assert refresh_tokens(store) == [f"new-{n}", f"old-{n}"]
    assert {path: path.read_bytes() for path in state.rglob("*.json")} == before
    for path in before:
        path.unlink()
    assert refresh_tokens(opened(state, "wx199")) == ["new-199", "old-199"]


@pytest.mark.parametrize(
    "host", ["api2.weixin.qq.com", "api.weixin.qq.com%3A443", "sh.api.weixin.qq.com%3A443"]
)
def test_the_newest_of_wechats_hosts_wins(state: Path, write: Write, host: str) -> None:
    """The first version knew each host as another WeChat, with its own directory."""
    write("wx01", RECORD, **authorized("older", expires_at=8.0))
    write("wx01", RECORD, host=host, **authorized("newer", expires_at=9.0))
    assert refresh_tokens(opened(state))[0] == "newer"


def test_what_an_old_process_renews_later_is_seen(state: Path, write: Write) -> None:
    """During a rolling deployment; the refresh token that was known here is tried after it."""
    write("wx01", RECORD, **authorized("first", expires_at=8.0))
    store = opened(state)
    store.load()
    write("wx01", RECORD, **authorized("rotated", expires_at=9.0))
    assert refresh_tokens(store) == ["rotated", "first"]
    assert refresh_tokens(opened(state)) == ["rotated", "first"]


def test_an_older_file_changes_nothing(state: Path, write: Write) -> None:
    """What was renewed here since stays, and so does the end of an authorization."""
    write("wx01", RECORD, **authorized("first", expires_at=8.0))
    store = opened(state)
    newer = Authorization((Secret("newer"),), StoredToken(Secret("a"), 9.0), 7.0)
    for record in (newer, Authorization((), None, 8.0)):
        store.save(record)
        assert (store.load(), opened(state).load()) == (record, record)


def test_a_merchant_who_leaves_an_old_process_has_left(state: Path, write: Write) -> None:
    """The push went there; no refresh token of before is used again."""
    write("wx01", RECORD, **authorized("first", expires_at=8.0))
    opened(state).load()
    write("wx01", RECORD, **authorized(since=8.0))
    assert refresh_tokens(opened(state)) == []


def test_the_newest_ticket_wins_whichever_process_it_came_to(state: Path, write: Write) -> None:
    """WeChat pushes each ten minutes, now to an old process and now to a new one."""
    write(PLATFORM, "ticket", access_token="first", expires_at=43_800.0)
    assert tickets(state).newest() == Secret("first")
    tickets(state).keep(Secret("second"), pushed_at=1200.0)
    assert tickets(state).newest() == Secret("second")
    write(PLATFORM, "ticket", access_token="third", expires_at=45_000.0)
    assert tickets(state).newest() == Secret("third")


def test_a_copy_does_not_replace_what_was_saved_meanwhile(
    state: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader has looked at the old file, and before it copies that, another process renews."""
    write("wx01", RECORD, **authorized("first", expires_at=8.0))
    reader, renewer = opened(state), opened(state)
    newer = Authorization((Secret("newer"),), StoredToken(Secret("a"), 9.0), 7.0)
    read = reader._first.load  # type: ignore[attr-defined]

    def read_slowly(codec: Any) -> Any:
        found = read(codec)
        renewer.save(newer)
        return found

    monkeypatch.setattr(reader._first, "load", read_slowly)  # type: ignore[attr-defined]
    reader.load()
    assert opened(state).load() == newer


def test_an_old_process_that_renews_is_waited_for(state: Path, write: Write) -> None:
    """Its lock is taken too: one refresh token is not used by both at once."""
    path = write("wx01", RECORD, **authorized("first", expires_at=8.0))
    store = FileStores(state / WECHAT, lock_wait_s=0.1).open("wx01", RECORD, AUTHORIZATION_CODEC)

    def lock() -> None:
        with store.lock():
            pass

    with (
        FileLock(f"{path}.lock"),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(TokenSourceError, match="another renewal holds its lock"),
    ):
        pool.submit(lock).result(60)
    lock()


@pytest.mark.parametrize("content", [b"", b"{", b'{"error": "x", "expires_at": 1}', b"\xff"])
def test_an_old_file_that_is_no_record_is_none(state: Path, write: Write, content: bytes) -> None:
    """It counts as lost, as it did, and what is lost is found in WeChat's list."""
    write("wx01", RECORD).write_bytes(content)
    assert opened(state).load() is None


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("change", [a_link, a_pipe, lambda path: path.chmod(0o640)])
def test_an_old_file_that_cannot_be_trusted_is_refused(
    state: Path, write: Write, change: Callable[[Path], None]
) -> None:
    """Nothing of it is taken over, and the error names it."""
    path = write("wx01", RECORD, **authorized("first"))
    change(path)
    with pytest.raises(TokenSourceError) as caught:
        opened(state).load()
    assert str(path) in str(caught.value) or caught.value.source == str(path)
    assert not (state / WECHAT / "tokens.sqlite3").exists()


TAKE_OVER = """
import os
import sys
from pathlib import Path
from prefetch_kit.weixin.authorizations import AUTHORIZATION_CODEC
from prefetch_kit.weixin.token_stores.file import FileStores

stores = FileStores(Path(sys.argv[1]))
for n in range(50):
    kept = stores.open(f"wx{n:03}", "granted-to-wxplatform", AUTHORIZATION_CODEC).load()
    assert kept.refresh_tokens[0].reveal() == f"refresh-{n}"
"""


def test_many_processes_take_over_at_once(
    state: Path, write: Write, start: Callable[..., Popen[str]]
) -> None:
    """All workers of a new version start together: one file, and each record in it once."""
    for n in range(50):
        write(f"wx{n:03}", RECORD, **authorized(f"refresh-{n}", expires_at=9.0))
    workers = [start(TAKE_OVER, str(state / WECHAT)) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    with closing(sqlite3.connect(state / WECHAT / "tokens.sqlite3")) as other:
        assert other.execute("SELECT count(*) FROM records").fetchone() == (50,)
