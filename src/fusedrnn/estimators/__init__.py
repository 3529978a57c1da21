"""Estimators with scikit-learn's protocol, for sequences; needs scikit-learn."""

from fusedrnn.estimators.classifier import SequenceClassifier
from fusedrnn.estimators.forecaster import Forecaster
from fusedrnn.estimators.regressor import SequenceRegressor
from fusedrnn.estimators.seq2seq import Seq2Seq
from fusedrnn.estimators.tagger import SequenceTagger

__all__ = ["Forecaster", "Seq2Seq", "SequenceClassifier", "SequenceRegressor", "SequenceTagger"]


def __dir__() -> list[str]:
    return __all__
