"""What FFmpeg may open: containers of video, and nothing that names other files."""

import io
import time

import cv2
import pytest

from permenv.data.containers import HEAD_BYTES, is_container

SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 15004 RTP/AVP 96\n"
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
PACKET = b"G\x40\x00\x10" + bytes(184)


def ebml(size, header, rest=b""):
    return b"\x1a\x45\xdf\xa3" + size + header + rest


def padded(text):
    """A file long enough to be a video, without any zero byte."""
    return text + b"\n" * (HEAD_BYTES - len(text))


TYPE = b"\x42\x82\x88matroska"
ACCEPTED = {
    "AVI": b"RIFF\x10\x00\x00\x00AVI LIST",
    "GIF": b"GIF89a\x40\x00\x40\x00",
    "MP4": b"\0\0\0\x20ftypisom",
    "QuickTime": b"\0\0\0\x08wide\0\1\0\0mdat",
    "camera": b"\x12\x34\x56\x78mdat",
    "Matroska, size of one byte": ebml(b"\xa3", TYPE.rjust(0x23, b"\x01"), b"\x18S\x80g"),
    "WebM, size of eight bytes": ebml(b"\x01\0\0\0\0\0\0\x1f", b"\x42\x82\x84webm".rjust(0x1F, b"\x01")),
    "program stream": b"\0\0\1\xba\x44",
    "MPEG-2": b"\0\0\1\xb3\x16",
    "MPEG-4 Visual": b"\0\0\1\xb0\x01",
    "H.264": b"\0\0\0\1\x67",
    "transport stream": PACKET * 3,
}
REFUSED = {
    "empty": b"",
    "text": b"a film about nothing\n" * 40,
    "HLS playlist": HLS,
    "list of files": b"ffconcat version 1.0\nfile 'a.avi'\n",
    "SDP": SDP,
    "DASH": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "ASF redirector": b"[Reference]\nRef1=http://127.0.0.1/a.asf\n",
    "sound": b"RIFF\x10\x00\x00\x00WAVEfmt ",
    "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "first bytes of an AVI": b"RIFF\x10\x00\x00\x00AV",
    "EBML alone": b"\x1a\x45\xdf\xa3",
    "EBML of another type": ebml(b"\x8b", b"\x42\x82\x88mystery!"),
    "EBML without a size": ebml(b"\0" * 9, TYPE),
    "SDP after EBML": padded(ebml(b"\xa3", b"\n" + SDP)),
    "SDP after EBML whose type lies outside of its header": padded(ebml(b"\x82", b"\n" + SDP + TYPE)),
    "SDP after EBML that is longer than the file": padded(ebml(b"\x08\xff\xff\xff\xff", TYPE + b"\n" + SDP)),
    "SDP after a box of text": padded(b"AAAAftypjp2 \n" + SDP),
    "SDP that looks like packets": padded(b"G\nx" + SDP).replace(b"\n", b"G"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_containers_of_video_are_accepted(kind):
    assert is_container(ACCEPTED[kind][:HEAD_BYTES])


@pytest.mark.parametrize("kind", REFUSED)
def test_all_else_is_refused(kind):
    assert not is_container(REFUSED[kind][:HEAD_BYTES])


@pytest.mark.parametrize("kind", ACCEPTED)
def test_ffmpeg_does_not_take_an_accepted_file_for_a_session_description(kind):
    """It would wait for the stream for 30 seconds: of content without a file's name, no protocol is forbidden."""
    content = io.BytesIO(padded(ACCEPTED[kind] + b"\n" + SDP) + bytes(4096))
    start = time.perf_counter()
    while cv2.VideoCapture(content, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]).grab():
        pass
    assert time.perf_counter() - start < 10
