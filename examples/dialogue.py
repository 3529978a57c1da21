"""Answers to questions, learnt from a corpus of small talk (pip install chatterbot-corpus pyyaml matplotlib).

python examples/dialogue.py [EPOCHS]
"""

import re
import sys
import time
from collections import Counter
from importlib.resources import files

import numpy as np
import yaml
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer

from fusedrnn.estimators import Seq2Seq

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
pairs = []
for path in sorted(files("chatterbot_corpus").joinpath("data/english").iterdir(), key=str):
    for talk in yaml.safe_load(path.read_text("utf-8")).get("conversations", []):
        pairs += zip(map(str, talk), map(str, talk[1:]), strict=False)


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())[:25]


# Each question once, so that none is both trained on and held out.
pairs = {" ".join(words(a)): (words(a), words(b)) for a, b in pairs if words(a) and words(b)}
questions, answers = map(list, zip(*pairs.values(), strict=True))
order = np.random.default_rng(0).permutation(len(pairs))
test, train = order[: len(order) // 100 * 10], order[len(order) // 100 * 10 :]
seen = Counter(word for i in train for word in answers[i])
answers = [[word if seen[word] > 1 else "..." for word in row] for row in answers]
model = Seq2Seq(hidden_size=96, dropout=0.3, epochs=epochs, batch_size=32, random_state=0)
start = time.process_time()
model.fit([questions[i] for i in train], [answers[i] for i in train])
print(f"{len(train)} exchanges, {time.process_time() - start:.0f} s of processor time")

# Which of ten answers is that to a question? The one that it makes likelier than other questions do.
table = TfidfVectorizer(analyzer=lambda row: row).fit([*questions, *answers])
asked = table.transform([questions[i] for i in train])
ours = theirs = 0
for ten in test.reshape(-1, 10):
    grid = [(question, answer) for question in ten for answer in ten]
    likely = model.score_samples([questions[q] for q, _ in grid], [answers[a] for _, a in grid]).reshape(
        10, 10
    )
    likely -= likely.mean(axis=0)
    ours += int((likely.argmax(axis=1) == np.arange(10)).sum())
    nearest = (table.transform([questions[q] for q in ten]) @ asked.T).toarray().argmax(axis=1)
    given = table.transform([answers[train[i]] for i in nearest])
    alike = (given @ table.transform([answers[a] for a in ten]).T).toarray()
    theirs += int((alike.argmax(axis=1) == np.arange(10)).sum())
print(f"the right answer of ten: {ours / len(test):.1%} of {len(test)} held out;", end=" ")
print(f"that like the answer to the most similar question: {theirs / len(test):.1%}, chance: 10%")
for question in ("What is your name?", "Hello", "Do you like music?", "What is a computer?"):
    print(f"{question} -> {' '.join(model.predict([words(question)])[0])}")
axes = (figure := Figure(figsize=(9, 4))).subplots()
shown = axes.imshow(likely, cmap="RdBu_r", vmin=-20, vmax=20)  # right answers: the diagonal
axes.set_yticks(range(10), [" ".join(questions[i])[:40] for i in ten])
axes.set_xticks(range(10), [" ".join(answers[i])[:25] for i in ten], rotation=60, ha="right")
figure.colorbar(shown, label="likelier than on average, nats")
figure.savefig("dialogue.png", bbox_inches="tight", dpi=70)
