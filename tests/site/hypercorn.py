"""Hypercorn has no flag for the largest message; a file can set it."""

websocket_max_message_size = 1024 * 1024
