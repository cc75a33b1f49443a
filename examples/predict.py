"""Recognise the emotion in recordings: ``python examples/predict.py runs/demo hello.wav``."""

import sys

from sottovoce import Recogniser

if __name__ == "__main__":
    run_folder, *recordings = sys.argv[1:]
    recogniser = Recogniser.open(run_folder)
    for recording in recordings:
        prediction = recogniser.predict(recording)
        if prediction.emotion is None:  # silence, noise, or a model that is not sure enough
            print(f"{recording}: no answer, {prediction.reason}; {prediction.next_step}")
        else:
            print(f"{recording}: {prediction.emotion}, {prediction.confidence:.0%}")
            print(f"  with {prediction.coverage:.0%} coverage: {prediction.prediction_set}")
