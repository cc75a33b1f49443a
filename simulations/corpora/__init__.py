"""Adapters: from a folder of recordings to clips with a speaker and an emotion.

=============== =================================================================
catalogue       ``open_corpus``: a corpus by name
clips           ``Clip``, ``Corpus``, ``Finding``: what a corpus is
emotions        the table that joins labels of many corpora and languages
manifest        folders with a ``manifest.csv``
layouts         file names of the public corpora
files           missing, empty, repeated and contradictory recordings
checking        ``check``: listen to a corpus and report
synthetic       the embedded corpus; profiles and voice are its parts
=============== =================================================================
"""

from sottovoce.simulations.corpora.catalogue import TITLES, open_corpus
from sottovoce.simulations.corpora.checking import Report, check
from sottovoce.simulations.corpora.clips import Clip, Corpus, Finding

__all__ = ["TITLES", "Clip", "Corpus", "Finding", "Report", "check", "open_corpus"]
