"""Source files that somebody made to do harm, or that are broken beyond chance."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

GOOD = "A sentence that is worth to be kept."
_MEMBER = 16 * 2**20


def bomb_gz(folder: Path) -> None:
    """10 GB of zeros in 10 MB."""
    (folder / "bomb.txt.gz").write_bytes(gzip.compress(bytes(_MEMBER)) * (10 * 2**30 // _MEMBER))


def bomb_zst(folder: Path) -> None:
    """10 GB of zeros in 300 KB."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    zeros = bytes(_MEMBER)
    data = b"".join(packer.compress(zeros) for _ in range(32)) + packer.flush()
    (folder / "bomb.jsonl.zst").write_bytes(data * 20)


def bomb_of_rows(folder: Path) -> None:
    """A gigabyte of rows in one megabyte, each of them good."""
    row = json.dumps({"text": "a" * 2**20}).encode() + b"\n"
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(row * 16) * 64)


def bomb_of_lines(folder: Path) -> None:
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(b"\n" * _MEMBER) * 100)


def line_of_a_gigabyte(folder: Path) -> None:
    with (folder / "long.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(2**30)  # sparse: it takes no room


def file_of_a_terabyte(folder: Path) -> None:
    with (folder / "long.txt").open("wb") as file:
        file.truncate(2**40)


def long_key(folder: Path) -> None:
    (folder / "keys.jsonl").write_text(json.dumps({"k" * 30_000_000: 1}) + "\n")


def deep_json(folder: Path) -> None:
    (folder / "deep.jsonl").write_text('{"text": ' + "[" * 1_000_000 + "\n")


def huge_number(folder: Path) -> None:
    (folder / "number.jsonl").write_text('{"text": ' + "9" * 1_000_000 + "}\n")


def bomb_bz2(folder: Path) -> None:
    """5 GB of zeros in 4 KB."""
    (folder / "bomb.txt.bz2").write_bytes(bz2.compress(bytes(_MEMBER)) * 320)


def bomb_xz(folder: Path) -> None:
    """5 GB of lines of JSON in a megabyte."""
    row = json.dumps({"text": "a" * 2**20}).encode() + b"\n"
    (folder / "bomb.jsonl.xz").write_bytes(lzma.compress(row * 16, preset=0) * 320)


def damaged_second_frame(folder: Path) -> None:
    """The libraries' own readers take the text of the first frame and say nothing of the rest."""
    data = bz2.compress(b"good ")
    (folder / "two.txt.bz2").write_bytes(data + b"\xff" + data[1:])


def item_of_a_gigabyte(folder: Path) -> None:
    with (folder / "long.json").open("wb") as file:
        file.write(b'[{"text": "')
        file.truncate(2**30)


def bomb_of_items(folder: Path) -> None:
    """A gigabyte of good items in one megabyte."""
    items = b'{"text": "%s"},' % (b"a" * 2**20) * 16
    (folder / "items.json.gz").write_bytes(gzip.compress(b"[" + items) + gzip.compress(items) * 64)


def json_of_empty_lists(folder: Path) -> None:
    """An item that takes twenty times its size in memory."""
    (folder / "lists.json").write_bytes(b'[{"text": [' + b"[]," * 5_000_000)


def deep_json_array(folder: Path) -> None:
    (folder / "deep.json").write_text("[" * 1_000_000)


def csv_that_never_closes(folder: Path) -> None:
    with (folder / "open.csv").open("wb") as file:
        file.write(b'id,text\n1,"' + b"a line of a value that has no end\n" * 4_000_000)


def csv_line_of_a_gigabyte(folder: Path) -> None:
    with (folder / "long.csv").open("wb") as file:
        file.write(b"id,text\n1,")
        file.truncate(2**30)


def csv_of_commas(folder: Path) -> None:
    (folder / "commas.csv").write_bytes(b"id,text\n" + b"," * 60_000_000 + b"\n")


def csv_of_blank_lines(folder: Path) -> None:
    (folder / "blank.csv.gz").write_bytes(gzip.compress(b"id,text\n") + gzip.compress(b"\n" * _MEMBER) * 100)


def encoding_bomb(folder: Path) -> None:
    """Punycode is decoded in quadratic time."""
    (folder / "slow.py").write_bytes(b"# coding: punycode\n" + b"a" * 5_000_000 + b"-" + b"\xe9" * 1_000_000)


def linked_device(folder: Path) -> None:
    (folder / "data").symlink_to("/dev")
    (folder / "zero.txt").symlink_to("data/zero")


def nul_bytes(folder: Path) -> None:
    (folder / "nul.jsonl").write_bytes(b'{"text": "a"}\n{"text": "a\0b"}\n')


def not_utf8(folder: Path) -> None:
    (folder / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")


def socket_(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.txt")
    finally:
        os.chdir(here)


def device(folder: Path) -> None:
    (folder / "zero.txt").symlink_to("/dev/zero")


def link_out(folder: Path) -> None:
    (folder / "users.txt").symlink_to("/etc/passwd")


def relative_link_out(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text(GOOD)
    (folder / "link.txt").symlink_to(Path("..", "secret.txt"))


def link_to_itself(folder: Path) -> None:
    (folder / "loop.txt").symlink_to("loop.txt")


def name_not_utf8(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text(GOOD)


def name_with_controls(folder: Path) -> None:
    (folder / "a\n\x1b[2Jb.txt").write_text(GOOD)


def deep_folders(folder: Path) -> None:
    start, root = os.getcwd(), folder
    try:
        os.chdir(folder)
        for _ in range(1500):
            os.mkdir("a")
            os.chdir("a")
    finally:
        os.chdir(start)
    assert root.exists()


def parquet_wrong_schema(folder: Path) -> None:
    pq.write_table(pa.table({"text": [[GOOD]]}), folder / "lists.parquet")


def parquet_two_columns(folder: Path) -> None:
    pq.write_table(pa.table([pa.array([GOOD]), pa.array([GOOD])], names=["text", "text"]), folder / "twice.parquet")


def parquet_footer(folder: Path) -> None:
    path = folder / "footer.parquet"
    pq.write_table(pa.table({"text": [GOOD] * 50}), path)
    data = bytearray(path.read_bytes())
    data[-8:-4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)


def parquet_rows(folder: Path) -> None:
    """The footer says 120 rows where there are 100."""
    path = folder / "rows.parquet"
    pq.write_table(
        pa.table({"text": [f"{GOOD} {n}" for n in range(100)]}),
        path,
        use_dictionary=False,
        store_schema=False,
        write_statistics=False,
    )
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8].replace(b"\xc8\x01", b"\xf0\x01")  # zigzag varints
    path.write_bytes(data[: -8 - length] + footer + data[-8:])


def parquet_bomb(folder: Path) -> None:
    """80 GB: ten thousand rows that are the same text of 8 MB."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["a" * 2**23]))
    pq.write_table(pa.table({"text": column}), folder / "bomb.parquet", compression="zstd")


def parquet_long_row(folder: Path) -> None:
    pq.write_table(
        pa.table({"text": ["a" * 2**27]}),
        folder / "row.parquet",
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )


def parquet_not_utf8(folder: Path) -> None:
    column = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), folder / "latin.parquet")


def gzip_with_a_path(folder: Path) -> None:
    """The name in the header leads out; nothing is ever written under it, and the text is good."""
    header = b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"../../evil.txt\0"
    (folder / "path.txt.gz").write_bytes(header + gzip.compress(GOOD.encode())[10:])


# Each with parts of the one message that it must give.
HOSTILE = {
    bomb_gz: ("bomb.txt.gz", "one document of more than 64 MB"),
    bomb_zst: ("bomb.jsonl.zst", "decompresses to more than 200 times its size"),
    bomb_of_rows: ("rows.jsonl.gz", "decompresses to more than 200 times its size"),
    bomb_of_lines: ("lines.jsonl.gz:100000", "100,000 blank lines"),
    line_of_a_gigabyte: ("long.jsonl:1", "a line of more than 64 MB"),
    file_of_a_terabyte: ("long.txt", "one document of more than 64 MB"),
    long_key: ("keys.jsonl:1", "no key 'text'"),
    deep_json: ("deep.jsonl:1", "is not JSON"),
    huge_number: ("number.jsonl:1", "is not JSON"),
    bomb_bz2: ("bomb.txt.bz2", "decompresses to more than 200 times its size"),
    bomb_xz: ("bomb.jsonl.xz", "decompresses to more than 200 times its size"),
    damaged_second_frame: ("two.txt.bz2", "cannot be read"),
    item_of_a_gigabyte: ("long.json: item 1", "is not JSON"),
    bomb_of_items: ("items.json.gz", "decompresses to more than 200 times its size"),
    json_of_empty_lists: ("lists.json: item 1", "is not JSON"),
    deep_json_array: ("deep.json: item 1", "is not JSON"),
    csv_that_never_closes: ("open.csv", "is not CSV"),
    csv_line_of_a_gigabyte: ("long.csv", "a line of more than 64 MB"),
    csv_of_commas: ("commas.csv:2", "values, and the first line 2"),
    csv_of_blank_lines: ("blank.csv.gz", "100,000 blank lines"),
    encoding_bomb: ("slow.py", "is not UTF-8"),
    linked_device: ("zero.txt", "a link that leads out of the source's folder"),
    nul_bytes: ("nul.jsonl:2", "is not JSON"),
    not_utf8: ("latin.jsonl:2", "is not UTF-8 (byte 0xe9)"),
    pipe: ("pipe.txt", "a pipe, a socket or a device"),
    socket_: ("socket.txt", "a pipe, a socket or a device"),
    device: ("zero.txt", "a link that leads out of the source's folder"),
    link_out: ("users.txt", "a link that leads out of the source's folder"),
    relative_link_out: ("link.txt", "a link that leads out of the source's folder"),
    link_to_itself: ("loop.txt", "Too many levels of symbolic links"),
    name_not_utf8: (r"caf\udce9.txt", "its name is not UTF-8"),
    name_with_controls: (r"a\n\x1b[2Jb.txt", "control characters"),
    deep_folders: ("cannot be listed", "nested too deeply"),
    parquet_wrong_schema: ("lists.parquet", "the column 'text' holds list"),
    parquet_two_columns: ("twice.parquet", "several columns 'text'"),
    parquet_footer: ("footer.parquet", "cannot be read"),
    parquet_rows: ("rows.parquet", "repair or exclude it"),
    parquet_bomb: ("bomb.parquet", "decompresses to more than 200 times its size"),
    parquet_long_row: ("row.parquet: row 1", "more than 64 MB"),
    parquet_not_utf8: ("latin.parquet: row 2", "is not UTF-8"),
}
