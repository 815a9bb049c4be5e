"""`raymtl doctor`: what every machine of a cluster sees."""
