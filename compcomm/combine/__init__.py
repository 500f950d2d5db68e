"""Reducers around reducers: parts of a model, warm-up, schedules, settings by parameter."""
