"""What comes next? A language model of words, of the help texts of Python (no data needed).

python examples/language_model.py [EPOCHS [TEXTS]]
"""

import sys
import time
from collections import Counter
from pydoc_data import topics

import numpy as np

from fusedrnn.estimators import TextGenerator

epochs, most = [int(text) for text in sys.argv[1:]] + [8, 1000][len(sys.argv) - 1 :]
texts = [topics.topics[name] for name in sorted(topics.topics)][:most]
test, train = texts[::10], [text for index, text in enumerate(texts) if index % 10]

model = TextGenerator(
    "word",
    hidden_size=128,
    dropout=0.5,
    vocabulary_size=2000,
    window=40,
    batch_size=16,
    epochs=epochs,
    random_state=0,
)
start = time.process_time()
model.fit(train)
print(f"{sum(map(len, train))} characters, {time.process_time() - start:.0f} s of processor time")


def words(text):
    """Numbers of the words, between two for the beginning and one for the end."""
    return [0, 0, *model.vocabulary_.encode(model.tokens(text)).tolist(), 0]


def counts(size):
    return Counter(tuple(w[i - size : i + 1]) for w in map(words, train) for i in range(2, len(w)))


# Witten and Bell's mixture of the frequencies after two words, after one, and after none.
grams = [counts(size) for size in range(3)]
followers = [Counter(gram[:-1] for gram in some) for some in grams]
totals = [Counter() for _ in grams]
for total, some in zip(totals, grams, strict=True):
    for gram, count in some.items():
        total[gram[:-1]] += count


def probability(gram):
    if not gram:
        return 1 / len(model.vocabulary_)
    size, before = len(gram) - 1, gram[:-1]
    new, seen = followers[size][before], totals[size][before]
    return (grams[size][gram] + new * probability(gram[1:])) / (seen + new) if seen else probability(gram[1:])


logs = [np.log(probability(tuple(w[i - 2 : i + 1]))) for w in map(words, test) for i in range(2, len(w))]
print(f"perplexity {model.perplexity(test):.1f} of held-out texts; trigrams: {np.exp(-np.mean(logs)):.1f}")
for prompt in ("The cat sat on the", "The value of the"):
    chances = model.predict_proba(prompt)[0]
    chances[1] = 0.0  # words that are not among the 2000
    best = np.argsort(-chances)[:5]
    print(prompt, "...", ", ".join(f"{model.classes_[i]} {chances[i]:.0%}" for i in best))
print("The", model.generate("The", 40, temperature=0.7, random_state=0))
