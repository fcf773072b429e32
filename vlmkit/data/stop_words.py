"""English function words, which say little about a picture."""

from __future__ import annotations

_WORDS = """
a an the this that these those
i me my myself we us our ours ourselves you your yours yourself yourselves he him his himself
she her hers herself it its itself they them their theirs themselves oneself
who whom whose which what whatever whichever whoever
someone somebody something anyone anybody anything everyone everybody everything nobody nothing none
some any each every either neither both all many much more most few fewer less least several such other others
another own same enough
am is are was were be been being do does did doing done have has had having
can could may might must shall should will would ought
and or but nor so yet if then else than because since unless until till while whereas whether though although as
of at by for with without within about against between among amongst amid into onto upon through throughout during
before after above below over under to from up down in out on off around across along behind beside besides beyond
near toward towards per via like despite except
not no only just very too also even ever never again once here there when where why how now already almost
quite rather perhaps however therefore thus hence
's 't 're 've 'm 'll 'd s t re ve m ll d
don doesn didn isn aren wasn weren hasn hadn couldn wouldn shouldn mustn
"""

STOP_WORDS = frozenset(_WORDS.split())
"""Articles, pronouns, determiners, auxiliaries, conjunctions, prepositions and adverbs of degree, case-folded, with the
pieces that tokenizers make of contractions (``don 't``, ``it 's``, ``it s``)."""
