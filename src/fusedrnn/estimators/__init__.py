"""Estimators with scikit-learn's protocol, for sequences; needs scikit-learn."""

from fusedrnn.libraries import needed

with needed("fusedrnn.estimators", "sklearn", "scikit-learn"):
    from fusedrnn.estimators.anomaly import AnomalyDetector
    from fusedrnn.estimators.classifier import SequenceClassifier
    from fusedrnn.estimators.forecaster import Forecaster
    from fusedrnn.estimators.regressor import SequenceRegressor
    from fusedrnn.estimators.seq2seq import Seq2Seq
    from fusedrnn.estimators.tagger import SequenceTagger
    from fusedrnn.estimators.text_generator import TextGenerator

__all__ = [
    "AnomalyDetector",
    "Forecaster",
    "Seq2Seq",
    "SequenceClassifier",
    "SequenceRegressor",
    "SequenceTagger",
    "TextGenerator",
]


def __dir__() -> list[str]:
    return __all__
