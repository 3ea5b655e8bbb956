//! What a search does with budgets, levels and subjects that misbehave.
