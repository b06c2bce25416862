"""One heal: climb the ladder, attempt a rung, measure, set back, and keep the record that proves it."""
