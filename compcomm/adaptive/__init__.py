"""Compression that chooses itself: schedules, telemetry, and controllers that pick each layer's setting."""
