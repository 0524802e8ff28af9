"""Personal data and secrets: found where they are, and nowhere else."""

from __future__ import annotations

import pytest

from training.data.text.personal import REPLACEMENTS, scrub

KINDS = tuple(REPLACEMENTS)
_HEX = "0123456789abcdef"
PERSONAL = {
    "email": [
        "write to anna.schmidt@example.org please",
        "x@y.co",
        "a+b@mail.example.com,",
        "(o'neil@uni-bonn.de)",
        "Copyright 2020 Jane <jane_doe@users.example.net>",
        "mailto:info@firma.example.de",
        "First.Last@Sub.Domain.io.",
        "reply to 4711@shop.example.com now",
        "e-mail: peter@web.de;",
        "team@xn--bcher-kva.example",
    ],
    "ip": [
        "from 8.8.8.8 to",
        "host 93.184.216.34,",
        "[151.101.1.69]",
        "ping 1.1.1.1",
        "address=142.250.72.14;",
        "at 2001:4860:4860:0:0:0:0:8888 today",
        "(185.199.108.153)",
        "ssh root@46.4.12.9 ",
        "90.130.70.73 - - GET",
    ],
    "phone": [
        "call +49 30 901820 now",
        "+1 (415) 555-2671",
        "(415) 555-2671",
        "415-555-2671",
        "+44 20 7946 0958",
        "+33 1 42 68 53 00",
        "tel: +41 44 668 18 00.",
        "+919876543210",
        "fax +49-228-73-0",
        "+1-800-555-0199",
    ],
    "key": [
        "AKIAIOSFODNN7EXAMPLE",
        "token ghp_" + "a1B2" * 9,
        "sk-" + "Ab3_" * 10,
        "xoxb-123456789012-abcdefghijkl",
        "AIza" + "Sy0-" * 8 + "abc",
        "hf_" + "abCD" * 8 + "ef",
        "glpat-" + "aB3-" * 5,
        "github_pat_" + "a1B2" * 16,
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    ],
}
OTHERS = [
    "version 1.2.3.4",
    "v2.10.0.1",
    "release 4.5.6.7 is out",
    "pip install x==1.2.3.4",
    ">= 3.1.4.1",
    "127.0.0.1:8080",
    "10.0.0.1",
    "192.168.178.1",
    "172.16.0.9",
    "0.0.0.0",
    "255.255.255.0",
    "::1",
    "169.254.169.254",
    "999.1.1.1",
    "1.2.3",
    "1.2.3.4.5",
    "section 8.8.8.8.8",
    "300.1.2.3",
    "2026-11-30",
    "12:34:56",
    "30/11/2026",
    "1,234,567",
    "3.14159265358979",
    "1e-10",
    "550e8400-e29b-41d4-a716-446655440000",
    _HEX * 4,
    "4111 1111 1111 1111",
    "ISBN 978-3-16-148410-0",
    "100-200",
    "2020-2024",
    "page 12-34",
    "0x7fffffff",
    "+1",
    "+ 12 apples",
    "x = +123456",
    "#123456",
    "1234567890",
    "10000000",
    "9.81 m/s",
    "50 000 000",
    "@decorator",
    "@app.route('/')",
    "user@localhost",
    "a @ b",
    "git@",
    "foo@bar",
    "matrix @ vector",
    "f(x)@y",
    "@media print",
    "price: 12.50",
    "chapter 3-4-5",
    "v1.0.0-rc.1",
    "abc-def-ghij",
    "sk-learn",
    "sk-",
    "AKIA",
    "ghp_short",
    "key = value",
    "-----BEGIN CERTIFICATE-----",
    "eyJ",
    "hf_hub_download",
    "AIza",
    "xoxo",
    "token",
    "secret",
    "http://example.org/a.b.c.d",
    "https://example.org/1.2.3",
    "C:\\Users\\x",
    "/usr/lib/python3.11",
    "a.b.c.d",
    "00:1A:2B:3C:4D:5E",
    "12-34-56-78",
    "Matthew 5:3-12",
    "1-800",
    "+-------+",
    "3 + 4 = 7",
    "2001:db8",
    "fe80::1",
    "sum(1, 2)",
    "10 - 3 - 2 - 1",
]


@pytest.mark.parametrize("kind", KINDS)
def test_personal_data_is_found(kind: str) -> None:
    missed = [text for text in PERSONAL[kind] if REPLACEMENTS[kind] not in scrub(text, KINDS)[0]]
    assert not missed


def test_recall_and_precision() -> None:
    found = sum(sum(scrub(text, KINDS)[1].values()) > 0 for texts in PERSONAL.values() for text in texts)
    wrong = [text for text in OTHERS if scrub(text, KINDS)[0] != text]
    total = sum(map(len, PERSONAL.values()))
    assert len(OTHERS) + total >= 100
    assert found / total >= 0.95
    assert found / (found + len(wrong)) >= 0.95, wrong


def test_only_the_kinds_that_were_asked_for_are_replaced() -> None:
    text = "anna@example.org called from 8.8.8.8 and +49 30 901820"
    assert scrub(text, ("email",))[0] == "<email> called from 8.8.8.8 and +49 30 901820"
    scrubbed, counts = scrub(text, KINDS)
    assert scrubbed == "<email> called from <ip> and <phone>"
    assert counts == {"email": 1, "ip": 1, "phone": 1}
    assert scrub(text, ()) == (text, {})


def test_a_long_line_of_almost_addresses_is_done_in_no_time() -> None:
    for text in ("a." * 200_000 + "@", "a@" + "b." * 200_000, "1." * 200_000, "+1 " * 200_000, "eyJ" + "a" * 400_000):
        assert scrub(text, KINDS)[0] == text
