"""Reading: pages of history, heads, and subscriptions whose inbox puts things in order."""
