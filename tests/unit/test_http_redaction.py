"""What of a call is hidden: told by the words of a field's name."""

from __future__ import annotations

import json
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
    cookie Set-Cookie cookies pin userPin userpin ssn userpass
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
