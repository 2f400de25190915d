"""What an answer to a pull may be: its size, and every reason for which there is none."""

from collections.abc import Mapping
from typing import Final, NamedTuple

# /miniprogram/dev/framework/ability/pre-fetch.html says 256 KB and not how long a KB is: of more
# than 256 x 1024 bytes a phone keeps nothing.
MAX_ANSWER_BYTES: Final = 262_144
REFUSED_HEADER: Final = "X-Prefetch-Refused"


class Refusal(NamedTuple):
    status: int
    meaning: str


# The status is the one that the handler chose, from 400 to 499.
ABORTED: Final = "the handler refused it, as with abort(404)"
# The reason is the parameter's name.
MALFORMED: Final = Refusal(400, "a parameter is missing, too long or malformed")
REFUSALS: Final[Mapping[str, Refusal]] = {
    "extra": Refusal(400, "the handler needs an undocumented parameter that did not come"),
    "doubled": Refusal(400, "a parameter came twice"),
    "token-and-code": Refusal(400, "token and code came together"),
    "encoding": Refusal(400, "a name or value is not UTF-8, or holds a control character"),
    "too-long": Refusal(400, "the query string is over 8,190 bytes"),
    "login": Refusal(401, "the page needs a user and nothing proves one"),
    "foreign-appid": Refusal(403, "the appid is not ours, or not the one in the URL's path"),
    "page": Refusal(404, "no handler for this page"),
    "aborted": Refusal(404, ABORTED),
    "method": Refusal(405, "neither GET nor HEAD"),
    "app": Refusal(503, "the app answered instead of the kit, such as with a login page"),
    "failed": Refusal(500, "the handler failed"),
    "too-large": Refusal(500, "the answer is over PREFETCH_MAX_BYTES"),
    "late": Refusal(503, "the handler, or who knows the user, gave no answer within the deadline"),
    "busy": Refusal(503, "every thread that the page may have is taken"),
    "weixin": Refusal(503, "WeChat cannot be asked about a login code"),
}
