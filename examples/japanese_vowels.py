"""Which of nine speakers said a vowel, from LPC coefficients of 7 to 29 steps (pip install aeon)."""

from aeon.datasets import load_japanese_vowels

from fusedrnn.estimators import SequenceClassifier

X, y = load_japanese_vowels(split="train")  # arrays (12, T)
X_test, y_test = load_japanese_vowels(split="test")
model = SequenceClassifier(bidirectional=True, dropout=0.3, pooling="max", random_state=0)
model.fit([x.T for x in X], y)
print(f"accuracy {model.score([x.T for x in X_test], y_test):.4f}")
