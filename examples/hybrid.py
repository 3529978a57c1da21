"""A language model of characters: an LSTM, and one with self-attention over it (pip install matplotlib)."""

import sys
import time
from pydoc_data import topics

import numpy as np
from matplotlib.figure import Figure

import fusedrnn as fr
from fusedrnn.preprocessing import Vocabulary

quick = "--quick" in sys.argv
epochs, window, most = (2, 100, 20) if quick else (6, 256, 1000)
texts = [topics.topics[name] for name in sorted(topics.topics)][:most]
vocabulary = Vocabulary(texts, None)


def pieces(texts):
    """Characters of pieces of texts, and those that come next."""
    coded = [vocabulary.encode(list(text)) for text in texts]
    cut = [one[start : start + window + 1] for one in coded for start in range(0, len(one) - 1, window)]
    return [one[:-1] for one in cut], [one[1:] for one in cut]


def plain(hidden):
    layers = [fr.Embedding(len(vocabulary), 64, seed=0), fr.LSTM(64, hidden, seed=1), fr.Dropout(0.1, seed=2)]
    return fr.Sequential(*layers, fr.Linear(hidden, len(vocabulary), seed=3))


def hybrid(hidden):
    """Attention with one head looks back over what the LSTM made of the piece so far (SHA-RNN)."""
    *below, dropout, head = plain(hidden)
    attention = fr.SelfAttention(hidden, causal=True, seed=4)
    return fr.Sequential(*below, fr.Residual(fr.Sequential(fr.LayerNorm(hidden), attention)), dropout, head)


test, train = pieces(texts[::10]), pieces([text for n, text in enumerate(texts) if n % 10])
size = hybrid(64 if quick else 128).flat_parameters.size
wide = next(n for n in range(64, 1000) if plain(n).flat_parameters.size >= size)  # as many parameters
axes = (figure := Figure(figsize=(6, 3))).subplots()
for name, model in (("LSTM", plain(wide)), ("LSTM and attention", hybrid(64 if quick else 128))):
    optimizer = fr.optim.AdamW(model, lr=0.005)
    schedule = fr.optim.OneCycleLR(optimizer, 0.005, epochs * -(-len(train[0]) // 16))
    trainer = fr.training.Trainer(
        *(model, fr.cross_entropy, optimizer, schedule),
        clip=1.0,
        epochs=epochs,
        batch_size=16,
        progress=False,
    )
    start = time.process_time()
    history = trainer.fit(train, validation=test)
    bits = np.array(history["validation_loss"]) / np.log(2)
    print(
        f"{name}: {model.flat_parameters.size} parameters, {bits[-1]:.3f} bits a character, "
        f"{time.process_time() - start:.0f} s of processor time"
    )
    axes.plot(range(1, epochs + 1), bits, "o-", label=name)
axes.set(xlabel="epochs", ylabel="bits a character, held out")
axes.legend()
figure.savefig("hybrid.png", bbox_inches="tight", dpi=80)
