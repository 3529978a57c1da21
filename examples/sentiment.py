"""Whether a sentence of a film review praises or blames, from its words (a file; without one it says which).

pip download --no-deps --no-binary :all: vaderSentiment==3.3.2    # its source distribution has the data
python examples/sentiment.py vaderSentiment-3.3.2.tar.gz [EPOCHS]
"""

import io
import re
import sys
import tarfile
import time
from collections import Counter

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from fusedrnn.estimators import SequenceClassifier

if len(sys.argv) < 2:
    raise SystemExit(__doc__)
file, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5


def member(archive, end):
    return archive.extractfile(next(m for m in archive if m.name.endswith(end))).read()


with tarfile.open(file) as archive:
    inner = io.BytesIO(member(archive, "hutto_ICWSM_2014.tar.gz"))
with tarfile.open(fileobj=inner) as archive:
    text = member(archive, "movieReviewSnippets_GroundTruth.txt").decode("utf-8", "replace")
rows = [line.split("\t") for line in text.splitlines()]
rows = [(float(rating), sentence.lower()) for _, rating, sentence in rows if float(rating)]
order = np.random.default_rng(0).permutation(len(rows))
rated = np.array(["good" if rows[i][0] > 0 else "bad" for i in order])
sentences = [rows[i][1] for i in order]
test = len(rows) // 5

tokens = [re.findall(r"[\w']+|[!?]", sentence) for sentence in sentences]
seen = Counter(token for row in tokens[test:] for token in row)
tokens = [[token if seen[token] > 1 else "?" for token in row] for row in tokens]
model = SequenceClassifier(
    bidirectional=True,
    hidden_size=32,
    pooling="max",
    dropout=0.6,
    lr=0.003,
    weight_decay=0.3,
    epochs=epochs,
    random_state=0,
)
start = time.process_time()
model.fit(tokens[test:], rated[test:])
print(f"{len(rows) - test} sentences, {time.process_time() - start:.0f} s of processor time")
lines = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
lines.fit(sentences[test:], rated[test:])
ours, theirs = model.score(tokens[:test], rated[:test]), lines.score(sentences[:test], rated[:test])
print(f"accuracy {ours:.1%} of {test} held out; logistic regression of pairs of words: {theirs:.1%}")
