"""English to French from the few texts of Django's own pages (pip install django sacrebleu).

python examples/translation.py [EPOCHS]
"""

import gettext
import re
import sys
import time
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

import numpy as np
from sacrebleu import corpus_chrf

from fusedrnn.estimators import Seq2Seq

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
pairs = {}
for path in sorted(Path(str(files("django"))).glob("**/locale/fr/LC_MESSAGES/django.mo")):
    with path.open("rb") as file:
        catalog = gettext.GNUTranslations(file)._catalog
    for english, french in catalog.items():
        english = english[0] if isinstance(english, tuple) else english  # with its plural
        if english and len(english) < 120:
            pairs[english.split("\x04")[-1]] = french  # without its context
english = np.random.default_rng(0).permutation(sorted(pairs)).tolist()
test, train = english[: len(english) // 10], english[len(english) // 10 :]


def words(text):
    """Words, marks, and the spaces between them."""
    return re.findall(r"%\(\w+\)\w|\w+|\s+|[^\w\s]", text)


model = Seq2Seq(
    hidden_size=128, dropout=0.3, epochs=epochs, batch_size=32, label_smoothing=0.1, random_state=0
)
start = time.process_time()
model.fit([words(text) for text in train], [words(pairs[text]) for text in train])
print(f"{len(train)} texts, {time.process_time() - start:.0f} s of processor time")
found = ["".join(answer) for answer in model.predict([words(text) for text in test])]
nearest = [pairs[get_close_matches(text, train, 1, 0)[0]] for text in test]


def chrf(answers):
    return corpus_chrf(answers, [[pairs[text] for text in test]]).score


print(f"chrF {chrf(found):.1f} of {len(test)} held out;", end=" ")
print(f"that of the most similar text: {chrf(nearest):.1f}, English as it is: {chrf(test):.1f}")
for text, answer in list(zip(test, found, strict=True))[:8]:
    print(f"{text!r} -> {answer!r}")
