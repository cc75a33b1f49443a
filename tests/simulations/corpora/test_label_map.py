import pytest

from sottovoce.simulations.corpora import label_map


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
    assert label_map.harmonise_label(label) == ours


@pytest.mark.parametrize(("label", "ours"), [("Sarcasm", "sarcasm"), ("very tired", "very_tired")])
def test_an_unknown_label_stays_a_class_of_its_own(label: str, ours: str) -> None:
    assert label_map.harmonise_label(label) == ours


def test_shades_of_meaning_are_not_joined() -> None:
    words = ["calm", "neutral", "excited", "happy", "frustrated", "angry", "contempt", "disgust"]
    assert [label_map.harmonise_label(word) for word in words] == words


def test_no_synonym_stands_under_two_emotions() -> None:
    words = [label_map.fold_label(w) for text in label_map._SYNONYMS.values() for w in text.split()]
    assert len(words) == len(set(words))
    assert set(label_map._SYNONYMS) == set(label_map.CANONICAL_EMOTIONS)


def test_classes_come_in_canonical_order_and_others_behind() -> None:
    assert label_map.sort_emotions(["zeal", "sad", "awe", "neutral", "sad"]) == (
        "neutral",
        "sad",
        "awe",
        "zeal",
    )


@pytest.mark.parametrize("cell", ["", "  ", "NaN", "n/a", "?"])
def test_cells_that_say_nothing_are_missing(cell: str) -> None:
    assert label_map.is_missing(cell)
    assert not label_map.is_missing("none")
