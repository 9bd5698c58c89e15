"""Faces: φ of the paper, from pixels to embeddings and pools (Sections 4.1 and 4.2)."""
