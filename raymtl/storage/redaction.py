"""Removes secrets from texts that are saved or shown: passwords and signatures in URLs, and values
of keys such as `token`.

Secrets are recognised by their form only. A secret under an unremarkable name is not removed, so
keep secrets in the environment.
"""

import re

HIDDEN = "***"
# Where there is a : before the @. A lone name there may be a user, a container or a bucket, but for
# https a token.
_USER = re.compile(r"(:/{1,2})[^/@\s:]*:[^/@\s]+@|(https?:/{1,2})[^/@\s]+@")
_ENDS = (
    "sig|signature|token|secret|password|passwd|pwd|credentials?|auth|"
    "(?:api|access|secret|private)[-_]?key(?:[-_]?id)?"
)
_QUERY = re.compile(rf"(?i)([?&;](?:[\w.-]*[-_.])?(?:aws)?(?:{_ENDS}|key)=)[^&;#\s]+")
_VALUE = r"""(?!\*\*\*)(?:"[^"]*"|'[^']*'|[^\s,}]+)"""
_PAIR = re.compile(rf"(?i)((?:^|[\s,{{])(?:[\w.-]*[-_.])?(?:{_ENDS})=){_VALUE}")
# In a mapping in one line; `key: expected ...` of a message is none.
_FLOW = re.compile(rf"""(?i)([{{,]\s*(["']?)(?:[\w.-]*[-_.])?(?:{_ENDS})\2\s*:\s*){_VALUE}""")
_WORD = re.compile(rf"(?is)^((?:[\w.-]*[-_.])?(?:{_ENDS})=).+")


def redacted(text: str) -> str:
    """The text with *** in place of each recognised secret."""
    text = _USER.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _PAIR.sub(rf"\1{HIDDEN}", text)
    return _FLOW.sub(rf"\1{HIDDEN}", text)


def redacted_word(word: str) -> str:
    """One word of a command line with *** in place of secrets. If its key is a secret's, everything
    after the = is replaced.
    """
    return redacted(_WORD.sub(rf"\1{HIDDEN}", word))


def holds_secret(text: str) -> bool:
    """Whether a text contains a recognised secret."""
    return redacted(text) != text
