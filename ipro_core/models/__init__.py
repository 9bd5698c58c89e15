"""Models: velocity networks, codecs and adapters (v_θ and v_ref of Eq. 7)."""
