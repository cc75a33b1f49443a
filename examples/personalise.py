"""Let a device learn its user's voice and labels, and forget one of them.

``python examples/personalise.py runs/demo hello.wav again.wav third.wav``; all recordings are of
one user. What is learned is sealed in the device's folder, here a temporary one. Nothing leaves it.
"""

import sys
import tempfile
from pathlib import Path

from sottovoce import Device, Recogniser
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.shared.audio import load_signal
from sottovoce.shared.privacy.ledger import PrivacyBudget


def create_device(folder: Path, labels: tuple[str, ...], width: int) -> None:
    """Create the device of a user who receives models and contributes to none."""
    profile = DeviceProfile(
        user="ada",
        budgets=(PrivacyBudget(epsilon=8.0, delta=1e-5),),
        labels=labels,
        contributes=False,
    )
    Device.create(folder, profile, LabelledFeatures.without_recordings(width=width))


if __name__ == "__main__":
    run_folder, *recordings = sys.argv[1:]
    signals = [load_signal(Path(recording)) for recording in recordings]
    package = Recogniser.open(run_folder).package
    with tempfile.TemporaryDirectory() as home:
        device = Path(home) / "device"
        create_device(device, package.labels, width=len(package.projection.mean))
        recogniser = Recogniser.open(run_folder, device)
        print("for anybody:   ", recogniser.predict(signals[0]))

        for signal in signals:
            recogniser.learn_voice(signal)
        print("knows the voice:", recogniser.predict(signals[0]))

        name = recogniser.label_recording(signals[0], package.labels[0])
        print("knows a label:  ", recogniser.predict(signals[0]))

        recogniser.forget_recording(name)
        print("forgot it again:", recogniser.predict(signals[0]))
