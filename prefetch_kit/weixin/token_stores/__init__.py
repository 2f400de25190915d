"""Stores of what WeChat hands out: tokens, tickets, authorizations."""
