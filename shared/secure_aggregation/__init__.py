"""Secure aggregation: the server learns the noised sum of many users' updates, never a single one.

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
agree     the survivors                  a signature on the survivors
unmask    the neighbours' signatures     one share for each neighbour: of its self mask if it
                                         survived, of its mask key if not, never both
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
