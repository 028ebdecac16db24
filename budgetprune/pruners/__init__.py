"""Trained selection: the budget embedding, and the controller that turns features into gates."""

from .adallava import AdaLLaVA
from .budget_embedding import BudgetEmbedding
from .budget_token import BudgetToken, VisionEncoderWithBudgetToken
from .controller import ControllerOutput, VisionTokenController
from .depth import DepthScheduler
from .query_controller import QueryController
from .relaxation import inclusion_probabilities, throttle

__all__ = ["AdaLLaVA", "BudgetEmbedding", "BudgetToken", "ControllerOutput", "DepthScheduler", "QueryController",
           "VisionEncoderWithBudgetToken", "VisionTokenController", "inclusion_probabilities", "throttle"]
