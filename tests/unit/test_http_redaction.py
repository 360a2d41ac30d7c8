"""What of a call is hidden: told by the words of a field's name."""

from __future__ import annotations

import json
import time
from urllib.parse import parse_qsl, urlencode

import pytest

from celery_durable.http import redaction

SECRET = """
    password passwd passphrase pass password_hash passwordHash PASSWORD_HASH password2 password_confirmation
    user.password card[password] pwd userPwd key keys key_id keyId api_key apiKey apikey APIKey x-api-key
    accessKey accesskey private_key privatekey secret client_secret clientSecret token accessToken
    access_token id_token tokens auth oauth2 Authorization authcode credential credentials signature session
    sessionId session_id card card_number cardNumber cardno cvc cvv2 iban ibans account accounts account_no
    accountNo account_number accountnumber accountNumber account_holder_name pan PAN otp userOTP jwt bearer
    cookie Set-Cookie cookies pin userPin userpin ssn userpass cred creds awsCreds
"""
PLAIN = """
    monkey company panel span keyboard keyword japan accounting_year amount name customer_id order companyName
    monkeyBars spanId panels bearing cook optional email status
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_a_secret_is_told_by_the_words_of_its_name(name: str) -> None:
    sent = json.dumps({"list": [{name: "hush"}]}).encode()
    form = urlencode({name: "hush"}).encode()

    assert "hush" not in str(redaction.body(sent, "application/json", "", 2048))
    kept = redaction.body(form, "application/x-www-form-urlencoded", "", 2048)
    assert dict(parse_qsl(str(kept))) == {name: "***"}


@pytest.mark.parametrize("name", PLAIN.split())
def test_a_name_that_only_contains_the_letters_of_such_a_word_stays_readable(name: str) -> None:
    sent = json.dumps({name: "shown"}).encode()

    assert redaction.body(sent, "application/json", "", 2048) == sent.decode()


def test_what_is_too_deep_to_be_judged_is_not_kept() -> None:
    deep = b"[" * 3000 + b"]" * 3000

    for kind in ("application/json", "text/plain"):
        assert redaction.body(deep, kind, "", 2048) is None


def test_json_behind_a_byte_order_mark_is_read() -> None:
    sent = b'\xef\xbb\xbf{"password": "hush"}'

    for kind in ("application/json", "text/plain"):
        assert redaction.body(sent, kind, "", 2048) == '{"password": "***"}'


CALL = {"function": "login", "arguments": json.dumps({"user": "ada", "password": "hush", "n": [1]})}


def test_json_inside_of_json_is_judged_as_the_rest_and_otherwise_as_it_was() -> None:
    twice = json.dumps(json.dumps({"token": "hush"}))
    cut = '{"user": "ada", "password": "hush'
    said = 'say {"pin": 1234, "at": 5} or {name}'
    sent = {"calls": [CALL, {"a": twice}, cut, said, '{"city":  "Paris"}', "[DONE]", "{name}"]}

    kept = redaction.body(json.dumps(sent).encode(), "application/json", "", 2048)

    assert "hush" not in str(kept)
    assert json.loads(str(kept))["calls"] == [
        {**CALL, "arguments": '{"user": "ada", "password": "***", "n": [1]}'},
        {"a": json.dumps(json.dumps({"token": "***"}))},
        '{"user": "ada", "password": "***"',
        'say {"pin": "***", "at": 5} or {name}',
        *sent["calls"][4:],
    ]


def test_json_in_a_form_is_judged_too() -> None:
    sent = urlencode({"payload": '{"token": "hush", "type": "click"}'}).encode()

    kept = redaction.body(sent, "application/x-www-form-urlencoded", "", 2048)

    assert dict(parse_qsl(str(kept))) == {"payload": '{"token": "***", "type": "click"}'}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('id: 1\ndata: {"access_token": "hush"}\n\ndata: [DONE]\n\n', None),
        ('data:{"creds": {"a": "hush"}}\r\ndata:{"delta": "shown"}\r\n', None),
        ('data: {\ndata:   "password": "hush",\ndata:   "n": 1\ndata: }\n', None),
        ('{"password": "hush"}\n{"n": 1}\n', None),
        ('data: {"access_token": "hu', 'data: {"access_token": "***"'),
        ('data: {"creds": {"a": "hush"\ndata: "b": "hush', 'data: {"creds": "***"'),
        ("the 'key': 'hush', " + r"\"pin\": \"hush\"", "the 'key': \"***\", " + r'\"pin\": "***"'),
    ],
)
def test_json_in_the_lines_of_a_text_is_judged_and_what_has_no_end_ends_it(
    sent: str, kept: str | None
) -> None:
    if kept is None:
        kept = sent.replace('{"a": "hush"}', '"***"').replace('"hush"', '"***"')

    assert redaction.body(sent.encode(), "text/event-stream", "", 2048) == kept


HOSTILE = ["[", "{", '"', "'", "\\", '"a":', '"token":', '\\"', 'data: ["', '"key": \\']


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_meant_to_take_long_does_not(hostile: str) -> None:
    text = hostile * (redaction.LARGEST // len(hostile))
    began = time.process_time()

    redaction.body(text.encode(), "text/plain", "", 2048)
    redaction.body(json.dumps([text[: len(text) // 2]]).encode(), "application/json", "", 2048)

    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/a;token=hush/b;c;d=hush", "/a;token=***/b;c;d=***"),
        ("/reset/hush", "/reset/***"),
        ("/reset/token/hush/", "/reset/token/***/"),
        ("/v1/secrets/hush/versions", "/v1/secrets/***/versions"),
        ("/verify/email/hush", "/verify/email/***"),
        ("/auth/login", "/auth/login"),
        ("/oauth2/v2/token", "/oauth2/v2/token"),
        ("/monkeys/5/charges", "/monkeys/5/charges"),
    ],
)
def test_a_path_is_kept_without_what_is_as_good_as_a_password(path: str, kept: str) -> None:
    assert (
        redaction.url(f"https://ada:hush@example.com{path}?q=hush#hush") == f"https://example.com{kept}?q=***"
    )
