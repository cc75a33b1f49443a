"""Adapters: from a folder of recordings to clips with a speaker and an emotion.

=============== =================================================================
catalogue       ``open_corpus``: a corpus by name
corpus          ``Clip``, ``Corpus``, ``Finding``: what a corpus is
label_map       the table that joins labels of many corpora and languages
user_label_map  a user's own: labels to keep, merge, drop or rename
labelling       one label a clip: votes, codes, maps
table           CSV and its dialects
manifest        folders with a ``manifest.csv``
links           linked folders, and paths that a manifest writes
layouts         file names of the public corpora
discovery       missing, empty, repeated and contradictory recordings
inspection      ``inspect_corpus``: measure every recording and report
speaker_splits  folds by speaker, and protocols of the literature
synthetic       the embedded corpus of synthetic voices
=============== =================================================================
"""

from sottovoce.simulations.corpora.catalogue import TITLES, open_corpus
from sottovoce.simulations.corpora.corpus import Clip, Corpus, Finding
from sottovoce.simulations.corpora.inspection import CorpusReport, inspect_corpus

__all__ = ["TITLES", "Clip", "Corpus", "CorpusReport", "Finding", "inspect_corpus", "open_corpus"]
