"""Trained selection: the budget embedding, and the controller that turns features into gates."""

from .budget_embedding import BudgetEmbedding
from .controller import ControllerOutput, VisionTokenController
from .query_controller import QueryController
from .relaxation import inclusion_probabilities, throttle

__all__ = ["BudgetEmbedding", "ControllerOutput", "QueryController", "VisionTokenController",
           "inclusion_probabilities", "throttle"]
