import pytest

from sottovoce.simulations.corpora import emotions


@pytest.mark.parametrize(
    ("label", "ours"),
    [
        ("anger", "angry"),
        ("ANG", "angry"),
        ("Ärger", "angry"),
        ("A\u0308rger", "angry"),
        ("colère", "angry"),
        ("rabbia", "angry"),
        ("ira", "angry"),
        ("Freude", "happy"),
        ("joie", "happy"),
        ("alegría", "happy"),
        ("gioia", "happy"),
        ("Überraschung", "surprised"),
        ("pleasant-surprise", "surprised"),
        ("Pleasant Surprise", "surprised"),
        ("Langeweile", "bored"),
        ("dégoût", "disgust"),
        ("paura", "fearful"),
        ("miedo", "fearful"),
        ("Angst", "fearful"),
        ("tristesse", "sad"),
        ("neutralità", "neutral"),
        ("生气", "angry"),
    ],
)
def test_labels_of_many_languages_meet_in_one_word(label: str, ours: str) -> None:
    assert emotions.harmonise(label) == ours


@pytest.mark.parametrize(("label", "ours"), [("Sarcasm", "sarcasm"), ("very tired", "very_tired")])
def test_an_unknown_label_stays_a_class_of_its_own(label: str, ours: str) -> None:
    assert emotions.harmonise(label) == ours


def test_shades_of_meaning_are_not_joined() -> None:
    words = ["calm", "neutral", "excited", "happy", "frustrated", "angry", "contempt", "disgust"]
    assert [emotions.harmonise(word) for word in words] == words


def test_no_synonym_stands_under_two_emotions() -> None:
    words = [emotions._plain(w) for text in emotions._SYNONYMS.values() for w in text.split()]
    assert len(words) == len(set(words))
    assert set(emotions._SYNONYMS) == set(emotions.CANONICAL)


def test_classes_come_in_canonical_order_and_others_behind() -> None:
    assert emotions.in_order(["zeal", "sad", "awe", "neutral", "sad"]) == (
        "neutral",
        "sad",
        "awe",
        "zeal",
    )


@pytest.mark.parametrize("cell", ["", "  ", "NaN", "n/a", "?"])
def test_cells_that_say_nothing_are_missing(cell: str) -> None:
    assert emotions.is_missing(cell)
    assert not emotions.is_missing("none")
