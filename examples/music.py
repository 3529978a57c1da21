"""Four voices in the manner of Bach: a MIDI file and a picture (pip install music21 matplotlib)."""

import sys
from collections import Counter
from itertools import islice
from math import ceil

import numpy as np
from matplotlib.figure import Figure
from music21 import note, stream
from music21.corpus import chorales

from fusedrnn.estimators import TextGenerator

quick = "--quick" in sys.argv
FIRST, PITCHES = 0x100, 128  # a token is a character, which says the voice and the pitch


def voices(score):
    """Pitches (T, 4), soprano to bass, at every quarter; 0 is a rest."""
    pitches = np.zeros((ceil(score.highestTime), 4), int)
    for voice, part in enumerate(score.parts):
        for one in part.flatten().notes:
            pitches[ceil(one.offset) : ceil(one.offset + one.quarterLength), voice] = one.pitches[-1].midi
    return pitches


def text(pitches, up=0):
    tokens = FIRST + PITCHES * np.arange(4) + np.where(pitches > 0, pitches + up, 0)
    return "".join(map(chr, tokens.ravel()))


def followers(texts, size):
    """How often each token comes after each context of fewer than so many tokens."""
    found = {}
    for one in texts:
        padded = "\0" * (size - 1) + one + "\0"
        for place in range(size - 1, len(padded)):
            for length in range(size):
                found.setdefault(padded[place - length : place], Counter())[padded[place]] += 1
    return found


def probability(context, token):
    """Witten and Bell's mixture of the frequencies after contexts of all lengths."""
    seen = counts.get(context)
    shorter = probability(context[1:], token) if context else 1 / (len(counts[""]) + 1)
    return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen)) if seen else shorter


scores = islice(chorales.Iterator(), 40 if quick else None)
pieces = [voices(score) for score in scores if len(score.parts) == 4]
test = [text(piece) for index, piece in enumerate(pieces) if index % 10 == 0]
train = [
    text(piece, up)
    for index, piece in enumerate(pieces)
    if index % 10
    for up in (range(1) if quick else range(-5, 7))  # in every key
]
model = TextGenerator(
    hidden_size=256, embedding_size=48, dropout=0.3, window=256, batch_size=8, lr=0.004, random_state=0
)
model.set_params(epochs=12 if quick else 6).fit(train)
print(f"{len(pieces)} chorales, {4 * np.log(model.perplexity(test)):.2f} nats a step", end="")
for size in (6, 1):
    counts, logs = followers(train, size), []
    for one in test:
        padded = "\0" * (size - 1) + one + "\0"
        logs += [
            np.log(probability(padded[i - size + 1 : i], padded[i])) for i in range(size - 1, len(padded))
        ]
    print(f"; {size}-grams {-4 * np.mean(logs):.2f}", end="")
print()

begun = test[0][:32]  # it goes on from two bars of a chorale that it has not seen
more = model.generate(begun, 4 * 56, temperature=0.8, random_state=1)
tokens = np.array([ord(token) - FIRST for token in begun + more])
voice, step = tokens // PITCHES, np.cumsum(np.diff(tokens // PITCHES, prepend=4) <= 0) - 1
print(f"{np.mean(np.bincount(step) == 4):.0%} of {step[-1] + 1} steps have four voices")
drawn = np.zeros((step[-1] + 1, 4), int)
drawn[step, voice] = tokens % PITCHES
parts = [[note.Note(pitch) if pitch else note.Rest() for pitch in one] for one in drawn.T.tolist()]
stream.Score([stream.Part(part) for part in parts]).write("midi", "music.mid")
axes = (figure := Figure(figsize=(9, 3))).subplots()
for one, colour in zip(np.where(drawn > 0, drawn, np.nan).T, ("C3", "C1", "C2", "C0"), strict=True):
    axes.hlines(one, np.arange(len(one)), np.arange(len(one)) + 0.9, colour, lw=4)
axes.set(xlabel="quarter", ylabel="pitch (MIDI)")
figure.savefig("music.png", bbox_inches="tight", dpi=80)
