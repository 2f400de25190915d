"""Talking to api.weixin.qq.com."""
