"""Secure aggregation: a server learns the noised sum of many users' updates, and no single one.

Double masking over a sparse graph: Bonawitz et al. 2017, "Practical secure aggregation for
privacy-preserving machine learning" (CCS), and Bell et al. 2020, "Secure single-server aggregation
with (poly)logarithmic overhead" (CCS). Noise and quantisation: Kairouz, Liu and Steinke 2021, "The
distributed discrete Gaussian mechanism for federated learning with secure aggregation" (ICML).

========= ============================== =================================================
exchange  server to device               device to server
========= ============================== =================================================
advertise the round's name               two fresh public keys and a commitment, signed
share     everybody's advertisements     shares of two secrets, sealed for each neighbour
mask      shares sealed for this device  clipped, quantised, noised, masked update, signed
agree     who survives                   a signature on who survives
unmask    the neighbours' signatures     of each neighbour one share: of its self mask if it
                                         survives, of its mask key if not, never both
========= ============================== =================================================
"""

__all__ = [
    "config",
    "discrete_gaussian",
    "encrypted_shares",
    "framing",
    "masking",
    "messages",
    "neighbour_graph",
    "noise_accounting",
    "parameter_selection",
    "quantisation",
    "secret_sharing",
    "transcript",
]
