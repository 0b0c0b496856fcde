"""`make soak`: a fleet under constant traffic, one fault after another, and a judge who knows what may be answered."""
