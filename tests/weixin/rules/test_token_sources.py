"""Which of several token sources counts, for one mini program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from prefetch_kit.errors import ConfigError, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizers import AuthorizerToken
from prefetch_kit.weixin.command_token import CommandToken
from prefetch_kit.weixin.token_sources import TokenSources, source_of, token_source_of
from prefetch_kit.weixin.tokens import PlainToken, StableToken, StaticToken
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"


@dataclass(frozen=True, slots=True)
class Said:
    """What the settings of a deployment say; nothing by default."""

    state_dir: Path = Path("state")
    api_base_url: str = "https://api.weixin.qq.com"
    proxy: Secret | None = None
    ca_file: str | None = None
    token_store_url: Secret | None = None
    cache_namespace: str = "test"
    access_token: Secret | None = None
    token_command: tuple[str, ...] | None = None
    token_call: str = "stable_token"
    app_secrets: Mapping[str, Secret] = field(default_factory=dict)
    component_appid: str | None = None
    component_secret: Secret | None = None


PLATFORM = Said(component_appid="wxplatform", component_secret=Secret("c"))
SECRET = replace(PLATFORM, app_secrets={APPID: Secret("s")})
COMMAND = replace(SECRET, token_command=("token", "{appid}"))
TOKEN = replace(COMMAND, access_token=Secret("t"))


@pytest.fixture
def sources(transport: Transport) -> Callable[[Said], TokenSources]:
    return lambda said: TokenSources(said, transport)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (PLATFORM, AuthorizerToken),
        (SECRET, StableToken),
        (replace(SECRET, token_call="token"), PlainToken),
        (COMMAND, CommandToken),
        (TOKEN, StaticToken),
    ],
)
def test_the_first_in_the_list_counts(
    sources: Callable[[Said], TokenSources], said: Said, kind: type
) -> None:
    """Each of these settings says all that the one before it says, and one thing more."""
    assert type(sources(said).of(APPID)) is kind
    assert source_of(said, APPID) is not None
    assert sources(said).are_of_platform(APPID) is (kind is AuthorizerToken)


def test_a_secret_of_another_mini_program_counts_for_that_one(
    sources: Callable[[Said], TokenSources],
) -> None:
    """The platform's merchants beside it have no secret here."""
    assert type(sources(SECRET).of("wx02")) is AuthorizerToken
    assert sources(SECRET).are_of_platform("wx02")


def test_nothing_says_where_tokens_come_from(sources: Callable[[Said], TokenSources]) -> None:
    """The error names the settings that would."""
    with pytest.raises(ConfigError, match="PREFETCH_TOKEN_COMMAND, PREFETCH_ACCESS_TOKEN"):
        sources(Said()).of(APPID)
    assert source_of(Said(), APPID) is None
    assert not sources(Said()).are_of_platform(APPID)


def fails() -> str:
    raise ValueError("canary")


@pytest.mark.parametrize("function", [fails, lambda: "", lambda: "a b", lambda: None])
def test_a_function_that_gives_no_token(function: Callable[[], str]) -> None:
    """What it raised or gave is not shown."""
    with pytest.raises(TokenSourceError, match="Call it by hand") as caught:
        token_source_of(function).get()
    assert "canary" not in str(caught.value)
