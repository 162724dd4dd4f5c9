"""Recognises the containers of video files by their first bytes.

FFmpeg tries all of its formats on a file. Some are texts that make it open other files or addresses: playlists (HLS,
DASH), lists of files (concat), session descriptions (SDP). FFmpeg finds the text of some of them anywhere before the
first zero byte, also in a file that begins as a container. So what is accepted here is accepted in a form for which
FFmpeg's own detection is certain, or has a zero byte before any text.
"""

from __future__ import annotations

import re

HEAD_BYTES = 2048  # FFmpeg's first look at a file

_MAGIC = re.compile(
    rb"RIFF....AVI "
    rb"|GIF8[79]a"
    rb"|\x00...(ftyp|wide|free|skip|pnot)"  # MP4 and QuickTime; these boxes are small
    rb"|....(moov|mdat)"
    rb"|\x00\x00\x00?\x01"  # a start code of MPEG-1, 2 or 4: a program stream or a bare video stream
    rb"|G(?=.{187}G).{0,3}\x00",  # two packets of an MPEG transport stream
    re.DOTALL,
)


def is_container(head: bytes) -> bool:
    """Whether a file is AVI, MP4, QuickTime, Matroska, WebM, MPEG or GIF, by its first `HEAD_BYTES`.

    None of these makes FFmpeg open another file.
    """
    return _MAGIC.match(head) is not None or _is_matroska(head)


def _is_matroska(head: bytes) -> bool:
    """Whether the head contains a complete EBML header that names Matroska or WebM."""
    if not head.startswith(b"\x1a\x45\xdf\xa3") or len(head) < 5:
        return False
    width = 9 - head[4].bit_length()  # bytes of the header's size; their first bit that is set marks the width
    size = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
    header = head[4 + width : 4 + width + size]
    return len(header) == size and (b"matroska" in header or b"webm" in header)
