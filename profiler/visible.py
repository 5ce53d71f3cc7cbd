"""Text from files, stores and names, made safe to look at."""

_CONTROL = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {0x7F: "␡"}
_HIDDEN = [
    *range(0x80, 0xA0), 0x061C, *range(0x200B, 0x2010), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2060, 0x2065),
    *range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFEFF,
]  # fmt: skip
"""C1 controls, what turns the direction of text, what doesn't show, and surrogates, which no terminal can print."""
_VISIBLE = _CONTROL | {code: f"‹U+{code:04X}›" for code in _HIDDEN}


def visible(text: str) -> str:
    """The text with its control and direction characters spelled out; line breaks and tabs stay."""
    return text.translate(_VISIBLE)
