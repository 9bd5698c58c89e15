"""Training: J(θ) (Eq. 3) climbed step by step."""
