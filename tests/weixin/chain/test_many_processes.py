"""Many processes, one platform: one renewal, and a refresh token that no kill can lose."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken
from prefetch_kit.weixin.token_stores.redis import RedisStores
from prefetch_kit.weixin.tokens import StableToken
from prefetch_kit.weixin.transport import Transport

APPID, COMPONENT, SECRET = "wx01", "wxplatform", "canary-component-secret"
REFRESH = "api_authorizer_token"
PROCESSES = 64
# 500 for the figure in the threat list; fewer for every day.
KILLS = int(os.environ.get("REFRESH_TOKEN_KILLS", "40"))

Start = Callable[..., Popen[str]]
Calls = Callable[[str], int]

# Forks, lets all children go at once, and says what each one printed.
AT_ONCE = """
import os
import sys
from pathlib import Path
import redis  # here, or each child takes its time for it
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores import redis as redis_store
from prefetch_kit.weixin.token_stores.redis import RedisStores
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC
from prefetch_kit.weixin.tokens import StableToken
from prefetch_kit.weixin.transport import Transport

base_url, where, what, count, failed = sys.argv[1:]
waiting, go = os.pipe()
children = []
for _ in range(int(count)):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(waiting, 1)
        with Transport(base_url=base_url, deadline_s=30) as transport:
            if where.startswith("redis:"):
                redis_store._SILENCE_S = redis_store._ANSWER_S = 60.0  # on a busy machine
                stores = RedisStores(Secret(where), prefix="kit", lease_s=120, lock_wait_s=120)
            else:
                stores = FileStores(Path(where), lock_wait_s=120)
            if what == "stable":
                store = stores.open("wx01", "access_token", TOKEN_CODEC)
                source = StableToken(transport, "wx01", Secret("s"), store)
            else:
                secret = Secret("canary-component-secret")
                platform = ThirdParty(transport, "wxplatform", secret, stores)
                source = platform.authorizers.token("wx01")
            token = source.renew(Secret(failed))
        os.write(1, f"{token.reveal()}\\n".encode())
        os._exit(0)
    children.append(child)
os.close(go)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def at_once(start: Start, wx: Sandbox, where: object, what: str, failed: Secret) -> list[str]:
    """The tokens that all processes have after one and the same token failed them."""
    process = start(AT_ONCE, wx.base_url, str(where), what, str(PROCESSES), failed.reveal())
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return said.split()


def test_64_processes_and_one_expired_token_are_one_renewal(
    wx: Sandbox, transport: Transport, tmp_path: Path, start: Start
) -> None:
    """One asks WeChat while 63 wait, and all go on with what it got."""
    store = FileStores(tmp_path / "state").open(APPID, "access_token", TOKEN_CODEC)
    failed = StableToken(transport, APPID, Secret("s"), store).get()
    wx.expire_tokens(APPID)
    wx.inject(Fault(kind="delay", path="/cgi-bin/stable_token", delay_s=0.3))
    tokens = at_once(start, wx, tmp_path / "state", "stable", failed)
    assert (len(tokens), set(tokens)) == (PROCESSES, {wx.access_token(APPID)})
    assert wx.count(path="/cgi-bin/stable_token") == 2


def test_64_processes_and_one_merchants_token_are_one_renewal(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Callable[..., str],
    tmp_path: Path,
    start: Start,
    calls: Calls,
) -> None:
    """Each renewal would end the token, and the refresh token, of the one before."""
    authorize()
    failed = provider.authorizers.token(APPID).get()
    wx.inject(Fault(kind="delay", path=f"/cgi-bin/component/{REFRESH}", delay_s=0.3))
    tokens = at_once(start, wx, tmp_path / "state", "merchant", failed)
    assert (len(tokens), len(set(tokens)), calls(REFRESH)) == (PROCESSES, 1, 1)
    assert provider.authorizers.token(APPID).get() == Secret(tokens[0])


def test_64_processes_that_share_a_redis_are_one_renewal(
    wx: Sandbox, transport: Transport, redis_server: Any, start: Start
) -> None:
    """As if each ran on another machine: a lease instead of a lock."""
    stores = RedisStores(Secret(redis_server.url), prefix="kit")
    store = stores.open(APPID, "access_token", TOKEN_CODEC)
    failed = StableToken(transport, APPID, Secret("s"), store).get()
    wx.expire_tokens(APPID)
    tokens = at_once(start, wx, redis_server.url, "stable", failed)
    assert (len(tokens), set(tokens)) == (PROCESSES, {wx.access_token(APPID)})
    assert wx.count(path="/cgi-bin/stable_token") == 2


HOLD_THE_LOCK = """
import sys
from pathlib import Path
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC

with FileStores(Path(sys.argv[1])).open("wx01", "access_token", TOKEN_CODEC).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path, start: Start) -> None:
    """The operating system ends it with its process; how soon is printed."""
    store = FileStores(tmp_path).open(APPID, "access_token", TOKEN_CODEC)
    holder = start(HOLD_THE_LOCK, str(tmp_path))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    began = time.monotonic()
    with store.lock():
        waited_s = time.monotonic() - began
        store.save(StoredToken(Secret("t"), 0.0))
    print(f"\nnext holder {waited_s * 1000:.0f} ms after the kill")


# Children renew without end and are killed: every other one at a random instant, the rest by
# their own hand at a step of keeping the new refresh token. After each, the next renewal is due.
KILL_RENEWERS = """
import itertools
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from prefetch_kit.errors import PrefetchKitError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.file import FileStore, FileStores
from prefetch_kit.weixin.transport import Transport

base_url, directory, kills = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(done):
    return lambda *args: (done(*args), die())

def die_while_writing():
    # The operating system kills a process that writes more of a file than it may.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (random.randrange(8000), resource.RLIM_INFINITY))

def before(done, first):
    return lambda *args: (first(), done(*args))[1]

def renew(rounds):
    with Transport(base_url=base_url, deadline_s=30) as transport:
        stores = FileStores(Path(directory))
        platform = ThirdParty(transport, "wxplatform", Secret("canary-component-secret"), stores)
        source = platform.authorizers.token("wx01")
        token = source.get()
        for _ in rounds:
            token = source.renew(token)

lost = 0
for n in range(int(kills)):
    child = os.fork()
    if not child:
        match n % 8:
            case 1:
                FileStore.save = die  # WeChat has answered, and nothing of it is written
            case 3 | 5:
                # In the midst of SQLite's journal.
                FileStore.save = before(FileStore.save, die_while_writing)
            case 7:
                FileStore.save = die_after(FileStore.save)
        renew(itertools.count())
    if n % 2 == 0:
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        renew(range(1))
    except PrefetchKitError as error:
        print(error, file=sys.stderr)
        lost += 1
print(lost)
"""


def test_no_kill_loses_a_refresh_token(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Callable[..., str],
    tmp_path: Path,
    start: Start,
    calls: Calls,
) -> None:
    """Killed between WeChat's answer and the disk, again and again: the merchant need not know."""
    authorize()
    process = start(KILL_RENEWERS, wx.base_url, str(tmp_path / "state"), str(KILLS))
    said, _ = process.communicate(timeout=60 + KILLS)
    rescued = calls("api_get_authorizer_info")
    print(f"\n{KILLS} kills: {said.strip()} refresh tokens lost, {rescued} asked for")
    assert said == "0\n"
    assert rescued >= KILLS // 8 * 3  # those killed before the new one had its name
    assert is_good(wx, provider.authorizers.token(APPID).get())
    assert [push.info_type for push in wx.pushes()] == ["authorized"]


def is_good(wx: Sandbox, token: Secret) -> bool:
    """Whether WeChat takes it."""
    with wx.lock:
        return wx.state.tokens.find(token.reveal(), now=wx.now()).component == COMPONENT
