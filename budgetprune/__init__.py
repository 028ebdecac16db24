"""Token budgets for vision-language models."""
