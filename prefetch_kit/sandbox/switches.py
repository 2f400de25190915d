"""Switches for what is unknown about WeChat or differs between accounts."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class Switches:
    """How the local WeChat behaves. Assign to an attribute at any time, for the next call.

    A quota of None is no quota.
    """

    own_token_accepted: bool = True
    """fetchdatasetting takes a mini program's own token."""
    own_token_errcode: int = 48001
    """What fetchdatasetting answers to such a token where it does not take it."""
    get_lag_s: float = 0.0
    """How long fetchdatasetting's `get` shows what was there before a `set`."""
    fetchdatasetting_per_minute: int | None = None
    fetchdatasetting_per_day: int | None = None

    token_per_day: int | None = 2_000
    stable_token_per_minute: int | None = 10_000
    stable_token_per_day: int | None = 500_000
    force_refresh_per_day: int | None = 20
    clear_quota_per_month: int | None = 10
    """clear_quota calls for one account; one more answers 48006."""
    login_per_minute: int | None = 100
    """jscode2session calls for one user."""
    login_errcodes_are_strings: bool = False
    """jscode2session writes `"40029"` for 40029, as older pages have it."""

    component_token_overlap_s: float = 300.0
    """How long a platform's own token stays good once the next one is given out."""
    authorizer_token_overlap_s: float = 300.0
    """The same for the token that a platform has for a merchant."""
    refresh_token_rotates: bool = True
    """Each api_authorizer_token gives a new refresh token; otherwise it stays the same."""
    refresh_token_grace_s: float = 300.0
    """How long a refresh token stays good once it was replaced."""
    update_keeps_refresh_token: bool = True
    """A merchant that authorizes again keeps its refresh token; otherwise it gets a new one."""
    unchanged_update_is_pushed: bool = False
    """`updateauthorized` is pushed too where the merchant granted what it had granted before."""
    listed_refresh_tokens: Literal["queried", "always", "never"] = "queried"
    """Whether the authorizer list shows them: only after api_query_auth was called, as seen."""
    info_shows_refresh_token: bool = True
    """api_get_authorizer_info shows the refresh token."""
    own_redirect_code: bool = False
    """After an authorization on the page, the redirect has another code than the push has. Each
    code can be exchanged once."""
    ticket_every_s: float | None = 600.0
    """How often a ticket is pushed by itself; None is never."""
    ticket_failures: int | None = None
    """After so many tickets in a row that were not answered with `success`, none is pushed by
    itself before api_start_push_ticket is called; None is never."""
    push_deadline_s: float = 5.0
    push_retries: int = 0
    """Repeats, at once, of a push that was not answered with `success`."""

    unproved_platform_domain: Literal["listed", "86103", "-1"] = "listed"
    """How modify_wxa_jump_domain tells that a confirm file is not there: in the field for invalid
    domains of a success, or by a refusal."""
    jump_domain_get_has_errcode: bool = True
    """The lists that modify_wxa_jump_domain gives for `get` come with an errcode."""
    platform_domains_with_scheme: bool = False
    """The lists of modify_wxa_jump_domain have `https://` in front of each host."""
    max_domains: int = 300
    """Business domains of a platform, and of a mini program; one more answers 89029."""
    apps_per_domain: int = 100
    """How many mini programs a domain can be set for directly before it answers 506015."""
    release_deletes_console_domains: bool = True
    """A release of a mini program that a platform serves deletes the business domains that were
    set in its console."""

    timestamp_unit: Literal["s", "ms"] = "ms"
    custom_miniprogram_version: str | None = "1.0.0"
    """Sent with a pre-fetch; None leaves it out, as QQ does."""
    code_without_token: bool = True
    """A pre-fetch for a user without a background token has a login code."""
    periodic_without_token: bool = False
    """A user without a background token is pulled for periodically too."""

    pull_deadline_s: float = 5.0
    """From connecting to the last byte, repeats and redirects included; at most a day."""
    pull_retries: int = 0
    """Repeats after a connection that failed or broke."""
    follows_redirects: bool = False
    accept_encoding: Literal["identity", "gzip"] = "identity"
    keeps_any_status: bool = False
    """The body of an answer other than 200 is kept too."""
    bytes_per_kb: Literal[1000, 1024] = 1024
    """What the 256 KB a phone keeps are counted in."""
    ios_time_stamp_unit: Literal["s", "ms"] = "ms"
    """Seconds is what iOS clients before 8.0.27 hand out."""
