"""Run a federated simulation: ``python examples/simulate_run.py [SCENARIO]``, else the demo."""

import sys

from sottovoce import simulate

if __name__ == "__main__":
    scenario = sys.argv[1] if len(sys.argv) > 1 else "demo"
    run = simulate(scenario, epsilon=4, out="runs/epsilon-4")
    accuracy, privacy = run["accuracy"], run["privacy"]
    print(f"UAR {accuracy['uar']:.3f} over {run['clients']} clients")
    print(f"epsilon {privacy['epsilon']:g} for one {privacy['unit']}, delta {privacy['delta']:g}")
