"""Trained selection: the budget embedding, and the controller that turns features into gates."""

from .adallava import AdaLLaVA
from .budget_embedding import BudgetEmbedding
from .controller import ControllerOutput, VisionTokenController
from .depth import DepthScheduler
from .query_controller import QueryController
from .relaxation import inclusion_probabilities, throttle

__all__ = ["AdaLLaVA", "BudgetEmbedding", "ControllerOutput", "DepthScheduler", "QueryController",
           "VisionTokenController", "inclusion_probabilities", "throttle"]
