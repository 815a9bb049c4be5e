"""Takes secrets out of texts that are kept or shown: passwords and signatures in URLs, values by
their keys.

It knows them by how they are written, so a secret without a telling name passes: keep secrets in
the environment.
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
    """The same text with *** for each secret that can be told as one."""
    text = _USER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _PAIR.sub(rf"\1{HIDDEN}", text)
    return _FLOW.sub(rf"\1{HIDDEN}", text)


def redacted_word(word: str) -> str:
    """The same of one word of a command line, all of which after the = is the value of a telling
    key.
    """
    return redacted(_WORD.sub(rf"\1{HIDDEN}", word))


def holds_secret(text: str) -> bool:
    """Whether there is one to be told."""
    return redacted(text) != text
