import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.shared.identity import choose_spellings, identity_key, tidy_name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("José", "Jose\u0301"),
        ("Ana", " Ana\u00a0"),
        ("Ana", "ana"),
        ("Ana\u200b", "Ana"),
        ("\ufeffAna", "Ana"),
        ("Ana\u00ad", "Ana"),
        ("\u202aAna\u202c", "Ana"),
        ("Ana  Maria", "Ana\u3000Maria"),
        ("Ａｎａ", "Ana"),
        ("O\u2019Brien", "O'Brien"),
        ("Anna\u2011Lena", "Anna-Lena"),
        ("ﬁnn", "finn"),
        ("Straße", "STRASSE"),
        ("ｶﾞ", "ガ"),
        ("می\u200cخواهم", "میخواهم"),
        ("Å", "\u212b"),
        ("한국", unicodedata.normalize("NFD", "한국")),
    ],
)
def test_spellings_of_one_name_are_one_identity(one: str, other: str) -> None:
    assert identity_key(one) == identity_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("José", "Jose"),
        ("かんき", "がんき"),
        ("s1", "s01"),
        ("Ana Maria", "AnaMaria"),
        ("Müller", "Mueller"),
        ("क", "कि"),
        ("spk-1", "spk_1"),
    ],
)
def test_different_names_are_different_identities(one: str, other: str) -> None:
    assert identity_key(one) != identity_key(other)


@given(st.text(max_size=30))
def test_tidying_and_comparing_are_stable(name: str) -> None:
    tidy, key = tidy_name(name), identity_key(name)

    assert tidy_name(tidy) == tidy
    assert identity_key(tidy) == key
    assert identity_key(key) == key
    assert identity_key(unicodedata.normalize("NFD", tidy)) == key


@pytest.mark.parametrize(
    "name", ["Ana", "s01", "मीरा", "เศร้า", "Zoë", "ゆき", "می\u200cخواهم", "A B"]
)
def test_an_ordinary_name_is_stored_as_it_is_written(name: str) -> None:
    assert tidy_name(name) == name


def test_the_most_frequent_spelling_is_chosen_whatever_the_order() -> None:
    names = ["ana", "Ana", "Ana", "BEN", "Ben"]

    assert choose_spellings(names) == choose_spellings(reversed(names))
    assert choose_spellings(names) == {"ana": "Ana", "ben": "BEN"}
