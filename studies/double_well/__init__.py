"""The Gibbs and the sharpness-aware posterior of a double-well loss, exact and as samplers find them."""
