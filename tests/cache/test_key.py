"""Keys of answers: alike where all that was read is alike, and nowhere else."""

from collections.abc import Callable

from prefetch_kit.cache.key import answer_key, exact_key
from prefetch_kit.endpoint.users import Request

MakeRequest = Callable[..., Request]


def test_scopes_have_their_own_keys_for_what_they_share(make_request: MakeRequest) -> None:
    """Two scopes, and two read sets of one, keep apart what they remember of the same request."""
    request = make_request("id%3D1")
    scopes, read_sets = (b"a", b"b"), ((), ("query=id",), ("path", "query=id"))
    keys = [answer_key(request, scope, names) for scope in scopes for names in read_sets]
    assert len(set(keys)) == 6
    again = make_request("id%3D1")
    assert again.asked is request.asked
    assert keys == [answer_key(again, scope, names) for scope in scopes for names in read_sets]


def test_a_value_is_that_of_its_name(make_request: MakeRequest) -> None:
    """The same value of another name, or one that is missing there, is another answer."""
    request = make_request("a%3D1%26b%3D1")
    read_sets = [("query=a",), ("query=b",), ("query=c",), ("query=d",), ("query=a", "query=b")]
    assert len({answer_key(request, b"a", names) for names in read_sets}) == len(read_sets)


def test_a_key_without_the_user_asks_for_no_user(make_request: MakeRequest) -> None:
    """Proving one may mean asking WeChat."""

    def refuse(_: object) -> str:
        raise AssertionError("nobody reads the user")

    request = Request(make_request().inputs, refuse)
    assert answer_key(request, b"a", ("path",)) == answer_key(make_request(), b"a", ("path",))
    exact_key(request, b"a")


def test_users_have_their_own_keys(make_request: MakeRequest) -> None:
    """No user is no id, whatever that looks like."""
    users = [None, "", "-", "s", "alice", "\ud83d"]
    keys = {answer_key(make_request(user_id=user), b"a", ("user_id",)) for user in users}
    assert len(keys) == len(users)
