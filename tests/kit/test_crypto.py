"""Sealed secrets: bound, rotated, and never opened for anybody else."""

import secrets

import pytest

from backend.kit.crypto import CannotUnseal, Sealed, Sealer

OLD, NEW = "old " + "x" * 40, "new " + "y" * 40


def test_what_was_sealed_opens_for_the_same_owner_only() -> None:
    sealer = Sealer([NEW])
    sealed = sealer.seal("sk-secret", bound_to="user:1:provider:openai")
    assert sealer.open(sealed, bound_to="user:1:provider:openai") == "sk-secret"
    for other in ("user:2:provider:openai", "user:1:provider:mistral", ""):
        with pytest.raises(CannotUnseal):
            sealer.open(sealed, bound_to=other)


def test_no_two_seals_are_alike_and_none_holds_the_text() -> None:
    sealer = Sealer([NEW])
    found = {sealer.seal("sk-secret", bound_to="a").ciphertext for _ in range(50)}
    assert len(found) == 50
    assert not any(b"sk-secret" in one for one in found)


def test_an_old_key_still_opens_and_the_newest_seals() -> None:
    sealed = Sealer([OLD]).seal("text", bound_to="a")
    both = Sealer([NEW, OLD])
    assert both.open(sealed, bound_to="a") == "text"
    assert both.seal("text", bound_to="a").key_id == Sealer([NEW]).newest
    with pytest.raises(CannotUnseal, match="ENCRYPTION_KEYS"):
        Sealer([NEW]).open(sealed, bound_to="a")


@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_a_changed_text_does_not_open(change: str) -> None:
    sealer = Sealer([NEW])
    sealed = sealer.seal("text", bound_to="a")
    raw = bytearray(sealed.ciphertext)
    if change == "flip":
        raw[secrets.randbelow(len(raw))] ^= 1
    damaged = {"flip": bytes(raw), "cut": bytes(raw[:-1]), "empty": b""}[change]
    with pytest.raises(CannotUnseal):
        sealer.open(Sealed(sealed.key_id, damaged), bound_to="a")


def test_a_short_secret_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="token_urlsafe"):
        Sealer(["short"])
