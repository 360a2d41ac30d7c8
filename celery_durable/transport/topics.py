"""Topic exchanges as AMQP 0-9-1 has them: `*` is one word, `#` is any number of words, none included."""

from __future__ import annotations

import re

from kombu.transport.virtual.exchange import TopicExchange

_WORD = r"[^.]*"


class Topics(TopicExchange):
    """kombu's, whose `#` is at least one word."""

    def key_to_pattern(self, rkey: str) -> str:
        """Return a binding's key as a regular expression, the same to Postgres and to Python."""
        words = rkey.split(".")
        if set(words) == {"#"}:
            return "^.*$"
        pattern, dot = "", ""  # a dot stands in front of every word but the first
        for word in words:
            if word == "#":
                pattern += rf"(\.{_WORD})*" if dot else rf"({_WORD}\.)*"
            else:
                pattern += dot + (_WORD if word == "*" else re.escape(word))
                dot = r"\."
        return f"^{pattern}$"
