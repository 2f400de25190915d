"""What a setting may say, and how it is written."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_kit.errors import SourceRefused, UrlRefused
from prefetch_kit.fetch_setting import SOURCES, FetchSetting

URL = "https://shop.example/p"
printable = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="{}")
names = st.text(printable, min_size=1, max_size=128).filter(lambda name: "%7" not in name)
envs = names.filter(lambda name: "/" not in name)
texts = st.one_of(st.none(), st.just(""), st.just(URL), names)


@given(st.one_of(st.builds(FetchSetting.cloud_function, envs, names), st.just(FetchSetting.off())))
def test_what_is_written_is_read_back(setting: FetchSetting) -> None:
    """As a text, and as JSON values, whatever characters a name has."""
    assert FetchSetting.parse(setting.to_text()) == setting
    assert FetchSetting.from_dict(setting.to_dict()) == setting


@given(
    st.builds(
        FetchSetting,
        open=st.sampled_from([None, True, False]),
        source=st.sampled_from([None, *SOURCES]),
        url=texts,
        env=texts,
        function_name=texts,
    )
)
def test_what_is_checked_can_be_told_wechat(setting: FetchSetting) -> None:
    """It is whole and names one source; or it is off and names none."""
    if (refused := refusal_of(setting)) is not None:
        assert refused.remedy
        assert hasattr(setting, refused.field)
        return
    assert isinstance(setting.open, bool)
    given_texts = {name for name in ("url", "env", "function_name") if getattr(setting, name)}
    if setting.source is None:
        assert (setting.open, given_texts) == (False, set())
    else:
        expected = {"url"} if setting.source == "server" else {"env", "function_name"}
        assert given_texts == expected
        assert setting.is_whole


def refusal_of(setting: FetchSetting) -> SourceRefused | None:
    try:
        setting.checked()
    except SourceRefused as error:
        return error
    return None


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        (FetchSetting(), "open"),
        (FetchSetting(open="yes"), "open"),  # type: ignore[arg-type]
        (FetchSetting(open=True), "source"),
        (FetchSetting(open=False, url=URL), "source"),
        (FetchSetting(open=True, source="elsewhere", url=URL), "source"),  # type: ignore[arg-type]
        (FetchSetting(open=True, source="server", url=7), "url"),  # type: ignore[arg-type]
        (FetchSetting(open=False, source="cloud_function", env="e"), "function_name"),
    ],
)
def test_the_field_that_is_wrong_is_named(setting: FetchSetting, field: str) -> None:
    """For settings from a flag, a column or a keyword of another name."""
    with pytest.raises(SourceRefused) as caught:
        setting.checked()
    assert caught.value.field == field
    assert str(caught.value.of("--that")).startswith(f"--that {caught.value.problem}. ")


def test_a_url_that_is_refused_is_told() -> None:
    """Its error is one of sources too."""
    with pytest.raises(SourceRefused) as caught:
        FetchSetting.server("http://shop.example/")
    assert isinstance(caught.value, UrlRefused)
    assert caught.value.url == "http://shop.example/"


def test_switched_off_it_keeps_the_source_it_has() -> None:
    """The fields of another source, which WeChat remembers, do not count."""
    both = FetchSetting(open=True, source="server", url=URL, env="e", function_name="f")
    assert both.switched_off() == FetchSetting(open=False, source="server", url=URL)
    in_cloud = replace(both, source="cloud_function")
    off = FetchSetting(open=False, source="cloud_function", env="e", function_name="f")
    assert in_cloud.switched_off() == off
