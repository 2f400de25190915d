"""The confirm files (校验文件) that make the app's host a business domain (业务域名)."""

from flask import Flask, Response

from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.run_context import rule_host


def serve_confirm_files(app: Flask, config: Config) -> None:
    """Add a rule for each file of PREFETCH_CONFIRM_FILES, at the root of the host.

    Each rule has the exact name of its file in it: nothing is looked up for a request.
    """
    if not config.confirm_files:
        return
    host = rule_host(app, config.base_url)
    for name, content in config.confirm_files.items():
        app.add_url_rule(
            f"/{name}",
            f"prefetch_confirm_file_{name.removesuffix('.txt')}",
            lambda content=content: _answer(app, content),
            methods=["GET"],
            provide_automatic_options=False,
            host=host,
        )


def _answer(app: Flask, content: str) -> Response:
    headers = {"X-Content-Type-Options": "nosniff"}
    return app.response_class(
        content.encode(), content_type="text/plain; charset=utf-8", headers=headers
    )
