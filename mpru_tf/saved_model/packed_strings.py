"""String tensors as TensorFlow packs them into one piece of bytes."""

from __future__ import annotations


def unpack(content: bytes, count: int) -> list[bytes] | None:
    """The strings in ``tensor_content``: all lengths as varints, then all bytes.

    Args:
        content: the bytes.
        count: how many strings there are, as the tensor's shape says.

    Returns:
        The strings, or None if the bytes do not hold so many, or more.
    """
    lengths: list[int] = []
    position = 0
    while len(lengths) < count:
        length = shift = 0
        while True:
            if position >= len(content) or shift > 28:
                return None
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        return None
    strings = []
    for length in lengths:
        strings.append(content[position : position + length])
        position += length
    return strings
