"""What numbers a quantised graph needs, and the proof that its decisions are the reference's."""
