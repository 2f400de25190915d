"""The shop's SQLite database: products for everybody, a cart for each user."""

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from flask import current_app, g

_SCHEMA = """
CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, name TEXT, price TEXT, stock INTEGER);
CREATE TABLE IF NOT EXISTS carts (user_id TEXT, product_id INTEGER, count INTEGER,
                                  PRIMARY KEY (user_id, product_id));
CREATE TABLE IF NOT EXISTS keys (id INTEGER PRIMARY KEY, value TEXT);
"""
_PRODUCTS = [
    (1, "龙井茶 Longjing tea", "68.00", 40),
    (2, "紫砂壶 Clay teapot", "259.00", 6),
    (3, "茶巾 Tea towel", "12.50", 200),
]
_CARTS = [("openid-alice", 2, 1), ("openid-alice", 3, 4), ("openid-bob", 1, 2)]


def create_database(path: Path) -> str:
    """Create missing tables; return the secret key of all workers and commands."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(_SCHEMA)
        db.executemany("INSERT OR IGNORE INTO products VALUES (?, ?, ?, ?)", _PRODUCTS)
        db.executemany("INSERT OR IGNORE INTO carts VALUES (?, ?, ?)", _CARTS)
        db.execute("INSERT OR IGNORE INTO keys VALUES (1, ?)", [secrets.token_hex()])
        return str(db.execute("SELECT value FROM keys").fetchone()[0])


def select(query: str, *values: object) -> list[dict[str, object]]:
    if "db" not in g:
        g.db = sqlite3.connect(current_app.config["SHOP_DATABASE"])
        g.db.row_factory = sqlite3.Row
    return [dict(row) for row in g.db.execute(query, values)]


def close_database(_error: BaseException | None) -> None:
    if "db" in g:
        g.db.close()
