"""The front door: whole data sets, any classifier, one call each.

A thin layer on the functions of one example, which stay as they are.
"""

from mixjax.front.attacking import attack
from mixjax.front.evaluating import evaluate
from mixjax.front.predicting import predict

__all__ = ["attack", "evaluate", "predict"]
