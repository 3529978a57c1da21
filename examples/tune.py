"""Parameters of a classifier by Optuna; ended at any time, it goes on where it was (pip install optuna aeon).

python examples/tune.py [TRIALS [FILE]]
"""

import sys

import optuna
from aeon.datasets import load_japanese_vowels
from sklearn.model_selection import cross_val_score

from fusedrnn.estimators import SequenceClassifier

trials = int(sys.argv[1]) if len(sys.argv) > 1 else 20
file = sys.argv[2] if len(sys.argv) > 2 else "tune.db"
(X, y), (X_test, y_test) = (load_japanese_vowels(split=split) for split in ("train", "test"))
X, X_test = [x.T for x in X], [x.T for x in X_test]


def made(parameters):
    return SequenceClassifier(**{"epochs": 15, "random_state": 0, **parameters})


def score(trial):
    parameters = {
        "hidden_size": trial.suggest_int("hidden_size", 16, 96, log=True),
        "bidirectional": trial.suggest_categorical("bidirectional", [False, True]),
        "pooling": trial.suggest_categorical("pooling", ["last", "mean", "max"]),
        "dropout": trial.suggest_float("dropout", 0.0, 0.6),
        "lr": trial.suggest_float("lr", 1e-3, 3e-2, log=True),
    }
    return cross_val_score(made(parameters), X, y, cv=3).mean()


study = optuna.create_study(
    storage=f"sqlite:///{file}", study_name="vowels", direction="maximize", load_if_exists=True
)
study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # not what it drew before, once more
done = sum(trial.state.is_finished() for trial in study.trials)
study.optimize(score, n_trials=max(0, trials - done))
default, best = (made(p).fit(X, y).score(X_test, y_test) for p in ({}, study.best_params))
print(f"accuracy {best:.4f} with {study.best_params}, {default:.4f} with the default")
