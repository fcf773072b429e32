"""From measurements to a decision: fit error to LLM size and visual tokens, then choose under a budget. numpy only."""
