"""Where a deployment keeps what WeChat hands out: files of one machine, or a Redis for many."""

from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

from prefetch_kit.addresses import wechat_name
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.redis_store import RedisStores
from prefetch_kit.weixin.token_store import LOCK_WAIT_S, Codec, FileStore, Store

_T = TypeVar("_T")


class Stores(Protocol):
    """Opens the store of one record of one account; the same names open the same record."""

    def open(self, account: str, name: str, codec: Codec[_T]) -> Store[_T]: ...


class FileStores:
    """Files in a directory for each account. Every process of one user on this machine shares."""

    def __init__(self, directory: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._directory = directory
        self._lock_wait_s = lock_wait_s

    def open(self, account: str, name: str, codec: Codec[_T]) -> Store[_T]:
        path = self._directory / quote(account, safe="") / f"{name}.json"
        return FileStore(path, codec, lock_wait_s=self._lock_wait_s)


class Settings(Protocol):
    """What an app says about WeChat and about where to keep things."""

    @property
    def api_base_url(self) -> str: ...
    @property
    def state_dir(self) -> Path: ...
    @property
    def token_store_url(self) -> Secret | None: ...
    @property
    def cache_namespace(self) -> str: ...


def stores_of(settings: Settings, *, lock_wait_s: float = LOCK_WAIT_S) -> Stores:
    """The Redis of PREFETCH_TOKEN_STORE_URL, or files in the state directory."""
    if settings.token_store_url is None:
        return FileStores(
            settings.state_dir / wechat_name(settings.api_base_url), lock_wait_s=lock_wait_s
        )
    namespace = quote(settings.cache_namespace, safe="/", errors="surrogatepass")
    return RedisStores(
        settings.token_store_url,
        prefix=f"{namespace}:tokens:{wechat_name(settings.api_base_url)}",
        lock_wait_s=lock_wait_s,
    )
