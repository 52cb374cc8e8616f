"""The program that decodes JPEG, JPEG-LS and JPEG 2000 for :mod:`hmc_fast.data.decoder`.

It runs by itself, with a limit on memory, because decoders in C can abort, hang or overrun on a
damaged codestream. A request is a line of JSON and the codestream's bytes on stdin; an answer is a
line of JSON and the pixels' bytes on stdout. Whatever a decoder prints or logs is a complaint, and
a picture with a complaint is no answer.
"""

import io
import json
import logging
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

COMPLAINT_BYTES = 300


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked decides
    _, most_memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    complaints = os.memfd_create("complaints")
    os.dup2(complaints, 1)
    os.dup2(complaints, 2)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    requests = sys.stdin.buffer
    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request["length"])
        os.ftruncate(complaints, 0)
        os.lseek(complaints, 0, os.SEEK_SET)
        memory = request["memory"]
        if most_memory != resource.RLIM_INFINITY:
            memory = min(memory, most_memory)
        resource.setrlimit(resource.RLIMIT_AS, (memory, most_memory))
        signal.alarm(request["life_s"])  # where nobody is left to end a decoder that hangs
        pixels, problem = _decode(frame, request)
        signal.alarm(0)
        sys.stderr.flush()
        problem = problem or os.pread(complaints, COMPLAINT_BYTES, 0).decode(errors="replace")
        _answer(answers, b"" if problem else pixels, problem)


def _decode(frame: bytes, request: dict[str, Any]) -> tuple[bytes, str]:
    """The pixels, and what went wrong."""
    try:
        decode = _by_openjpeg if request["codec"] == "jpeg-2000" else _by_gdcm
        return decode(frame, request), ""
    except Exception as error:  # decoders raise whatever their C libraries do
        return b"", f"{type(error).__name__}: {error}"


def _answer(answers: BinaryIO, pixels: bytes, problem: str) -> None:
    answers.write(json.dumps({"length": len(pixels), "problem": problem}).encode() + b"\n")
    answers.write(pixels)
    answers.flush()


def _by_openjpeg(frame: bytes, request: dict[str, Any]) -> bytes:
    from openjpeg.utils import decode

    return bytes(decode(io.BytesIO(frame), j2k_format=0, reshape=False).data)


def _by_gdcm(frame: bytes, request: dict[str, Any]) -> bytes:
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((request["columns"], request["rows"], 1))
    image.SetDataElement(element)
    kinds = gdcm.PhotometricInterpretation
    grey = request["components"] == 1
    image.SetPhotometricInterpretation(kinds(kinds.MONOCHROME2 if grey else kinds.RGB))
    syntax = gdcm.TransferSyntax.GetTSType(request["transfer_syntax"])
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits = request["bits"]
    allocated = 8 if bits <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(request["components"], allocated, bits, bits - 1, 0))
    buffer = image.GetBuffer()
    if buffer is None:
        raise ValueError("the codestream is damaged")
    return bytes(buffer.encode("utf-8", "surrogateescape"))  # bytes come as text


if __name__ == "__main__":
    main()
