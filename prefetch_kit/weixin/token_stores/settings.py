"""The settings of a deployment, and the store they mean: a file, or a Redis of many machines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from prefetch_kit.addresses import wechat_name
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import LOCK_WAIT_S, Stores
from prefetch_kit.weixin.token_stores.redis import RedisStores


class Settings(Protocol):
    """What a deployment says about WeChat, its access tokens, and where to keep records."""

    @property
    def api_base_url(self) -> str: ...
    @property
    def state_dir(self) -> Path: ...
    @property
    def token_store_url(self) -> Secret | None: ...
    @property
    def cache_namespace(self) -> str: ...
    @property
    def access_token(self) -> Secret | None: ...
    @property
    def token_command(self) -> tuple[str, ...] | None: ...
    @property
    def token_call(self) -> str: ...
    @property
    def app_secrets(self) -> Mapping[str, Secret]: ...
    @property
    def component_appid(self) -> str | None: ...
    @property
    def component_secret(self) -> Secret | None: ...


def stores_of(settings: Settings, *, lock_wait_s: float = LOCK_WAIT_S) -> Stores:
    """The Redis of PREFETCH_TOKEN_STORE_URL, or a file in the state directory."""
    wechat = wechat_name(settings.api_base_url)
    if settings.token_store_url is None:
        return FileStores(settings.state_dir / wechat, lock_wait_s=lock_wait_s)
    namespace = quote(settings.cache_namespace, safe="/", errors="surrogatepass")
    return RedisStores(
        settings.token_store_url, prefix=f"{namespace}:tokens:{wechat}", lock_wait_s=lock_wait_s
    )
