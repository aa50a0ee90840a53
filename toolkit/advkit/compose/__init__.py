"""Who answers which hook, in which order, and what that demands and costs."""
