"""The list of mini programs: read line by line, and refused with the numbers of its lines."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import ListRefused
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.fleet.app_list import fill_targets
from prefetch_kit.fleet.project import load_project
from prefetch_kit.fleet.targets import Targets, read_wanted
from prefetch_kit.registrar.plan import OffIfFrom

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

Listed = Callable[..., dict[str, dict[str, str]]]
TOML = """
[apps]
list = "{name}"
[urls]
pre_fetch = "{url}"
period_fetch = "https://shop.example/p/{{appid}}/period"
[tokens]
command = ["tool", "{{appid}}"]
"""


def settings_of(target: str) -> dict[Kind, FetchSetting]:
    return {
        kind: each.setting if isinstance(each, OffIfFrom) else each
        for kind, each in read_wanted(target).items()
    }


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    """Which URLs a list comes to, by app and kind."""

    def read(
        text: str | bytes, *, name: str = "apps.csv", url: str = "https://shop.example/{appid}"
    ) -> dict[str, dict[str, str]]:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
        (tmp_path / "prefetch.toml").write_text(TOML.format(name=name, url=url))
        with Targets() as targets:
            fill_targets(load_project(tmp_path / "prefetch.toml"), None, targets)
            return {
                appid: {kind: each.to_text() for kind, each in settings_of(target).items()}
                for appid, target in targets
            }

    return read


def test_csv(listed: Listed) -> None:
    """The appid is all that is needed; a BOM, CRLF and empty lines do no harm."""
    assert listed("\ufeffappid\r\nwx01\r\n\r\nwx02\r\n") == {
        appid: {
            "pre_fetch": f"https://shop.example/{appid}",
            "period_fetch": f"https://shop.example/p/{appid}/period",
        }
        for appid in ("wx01", "wx02")
    }


def test_jsonl(listed: Listed) -> None:
    """One object a line."""
    found = listed('{"appid": "wx01"}\n\n{"appid": "wx02"}\n', name="apps.jsonl")
    assert list(found) == ["wx01", "wx02"]


def test_columns_fill_placeholders(listed: Listed) -> None:
    """Other columns than the appid may differ from app to app, the host too."""
    found = listed("shop,appid\na,wx01\nb,wx02\n", url="https://{shop}.example/{appid}")
    assert found["wx02"]["pre_fetch"] == "https://b.example/wx02"


def test_an_empty_cell_is_no_url(listed: Listed) -> None:
    """That app's pull is left alone."""
    found = listed("appid,shop\nwx01,\n", url="https://{shop}.example/")
    assert list(found["wx01"]) == ["period_fetch"]


def test_a_whole_url_in_a_cell(listed: Listed) -> None:
    """Where the template is nothing but one placeholder."""
    found = listed("appid,url\nwx01,https://a.example/x/y\n", url="{url}")
    assert found["wx01"]["pre_fetch"] == "https://a.example/x/y"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("appid\nwx01\nwx 2\n", {}, "line 3: it names no appid"),
        (f"appid\nwx01\n{'0123456789abcdef' * 2}\n", {}, "line 3: it names no appid"),
        ("appid\nwx01\nwx02\nwx01\n", {}, "line 4: wx01 is there twice"),
        ("appid,x\nwx01\n", {}, "line 2: it has 1 cells for 2 columns"),
        ("appid\nwx01,x\n", {}, "line 2: it has 2 cells for 1 columns"),
        ("app\nwx01\n", {}, "line 1: it does not name each column once"),
        ("appid,appid\nwx01,wx01\n", {}, "line 1: it does not name each column once"),
        ("appid\n", {}, "it names no mini program"),
        ("", {}, "line 1: it does not name"),
        ('appid\n"wx01', {}, "it is not CSV"),
        (b"appid\n\xff\n", {}, "not UTF-8"),
        ("appid\n" + "x" * 70_000, {}, "a line is longer"),
        (
            "appid\nwx01\n",
            {"url": "https://{shop}.example/"},
            "line 2: there is no column",
        ),
        ("appid,s\nwx01,e.com/\n", {"url": "https://{s}.example/"}, "line 2: s is not made of"),
        ("appid,s\nwx01,a@b\n", {"url": "https://{s}.example/"}, "line 2: s is not made of"),
        ("appid,s\nwx01,..\n", {"url": "https://a.example/{s}/"}, "line 2: s is not made of"),
        ("appid,s\nwx01,-a\n", {"url": "https://{s}.example/"}, "line 2: .* cannot be registered"),
        ("appid,url\nwx01,http://a.example/\n", {"url": "{url}"}, "line 2: .*cannot be registered"),
        ("[]\n", {"name": "apps.jsonl"}, "line 1: it is no object of strings"),
        ('{"appid": 7}\n', {"name": "apps.jsonl"}, "line 1: it is no object of strings"),
        ('{"appid": "wx01"}\n{\n', {"name": "apps.jsonl"}, "line 2: it is not JSON"),
        ("[" * 60_000, {"name": "apps.jsonl"}, "line 1: it is not JSON"),
        ("{}", {"name": "apps.jsonl"}, "line 1: it names no appid"),
    ],
)
def test_a_bad_line_is_named(listed: Listed, text: str, options: dict[str, str], says: str) -> None:
    """The whole list is refused, before anything is sent."""
    with pytest.raises(ListRefused, match=says):
        listed(text, **options)


def test_an_app_without_an_app_secret_is_named(merchants: "Merchants") -> None:
    """It is noticed before anything is sent for the others."""
    merchants.add(3)
    path = merchants.write()
    (path.parent / "secrets.json").write_text('{"wxm00000": "a", "wxm00002": "b"}')
    with Targets() as targets, pytest.raises(ListRefused) as caught:
        fill_targets(load_project(path), None, targets)
    (problem,) = caught.value.problems
    assert problem.startswith("line 3: there is no AppSecret for wxm00001")


def test_apps_without_a_token_source_are_one_cause(merchants: "Merchants") -> None:
    """Named otherwise than in a list, they are one line of a summary, not one each."""
    fleet = merchants.fleet()
    merchants.add(3)
    summary = fleet.read(merchants.appids, lambda _: None)
    (group,) = summary.tally.groups()
    assert (group.count, group.examples) == (3, merchants.appids)


def test_many_bad_lines_are_not_all_told(listed: Listed) -> None:
    """Ten are enough for one sentence."""
    with pytest.raises(ListRefused) as caught:
        listed("appid\n" + "!\n" * 5_000)
    assert len(caught.value.problems) == 11


def test_a_list_that_is_not_there(listed: Listed, tmp_path: Path) -> None:
    """The file is named."""
    listed("appid\nwx01\n")
    (tmp_path / "apps.csv").unlink()
    with Targets() as targets, pytest.raises(ListRefused, match=r"apps\.csv .*cannot be read"):
        fill_targets(load_project(tmp_path / "prefetch.toml"), None, targets)


def test_a_list_that_no_file_can_be(listed: Listed, tmp_path: Path) -> None:
    """A name with a NUL in it is refused like any other."""
    listed("appid\nwx01\n")
    path = tmp_path / "prefetch.toml"
    path.write_text(path.read_text().replace("apps.csv", "a\\u0000.csv"))
    with Targets() as targets, pytest.raises(ListRefused, match=r"\*\*\* .*no file can have"):
        fill_targets(load_project(path), None, targets)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_longest_line(listed: Listed, end: str) -> None:
    """65,536 characters are read, one more is refused."""
    cell = "x" * (65_536 - len("wx01,"))
    assert list(listed(f"appid,name\nwx01,{cell}{end}")) == ["wx01"]
    with pytest.raises(ListRefused, match="longer than 65536"):
        listed(f"appid,name\nwx01,{cell}x{end}")
