"""The store that the settings of a deployment mean: a file, or a Redis of many machines."""

from typing import TYPE_CHECKING
from urllib.parse import quote

from prefetch_kit.addresses import wechat_name
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import LOCK_WAIT_S, Stores
from prefetch_kit.weixin.token_stores.redis import RedisStores

if TYPE_CHECKING:
    from prefetch_kit.weixin.token_sources import Settings


def stores_of(settings: "Settings", *, lock_wait_s: float = LOCK_WAIT_S) -> Stores:
    """The Redis of PREFETCH_TOKEN_STORE_URL, or a file in the state directory."""
    wechat = wechat_name(settings.api_base_url)
    if settings.token_store_url is None:
        return FileStores(settings.state_dir / wechat, lock_wait_s=lock_wait_s)
    namespace = quote(settings.cache_namespace, safe="/", errors="surrogatepass")
    return RedisStores(
        settings.token_store_url, prefix=f"{namespace}:tokens:{wechat}", lock_wait_s=lock_wait_s
    )
