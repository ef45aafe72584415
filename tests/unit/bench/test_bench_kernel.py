"""What a guest is asked, and what it tells, without a virtual machine."""

from __future__ import annotations

import json
from dataclasses import asdict

from bench.asked import LIMIT
from bench.attach import Mount
from bench.cases import KERNEL_CASES
from bench.kernel import LONGEST_ROUND, Collected, guest_command, machine_command
from bench.peers import attached_peers
from bench.peers.ours import SUBJECT
from bench.placement import Placement
from bench.summary import Key
from tests.support.bench_samples import figures


def test_what_a_guest_tells_is_put_together() -> None:
    collected = Collected()
    told: list[dict[str, object]] = [{"machine": {"kernel": "Linux 6.1"}}]
    for cpu, whole in ((1.0, 5.0), (3.0, 7.0), (2.0, 6.0)):
        told.append({"peer": SUBJECT, "mount": {"whole": whole, "alone": None}})
        told.append({"case": "c", "peer": SUBJECT, "figures": asdict(figures(cpu))})
    told.append({"peer": SUBJECT, "mount": {"whole": None, "alone": 0.5}})
    for each in told:
        collected.take(json.dumps(each))
    run = collected.run(3, 0.25)
    assert run is not None
    assert run.machine == {"kernel": "Linux 6.1"}
    assert run.samples.get(Key("c", Placement.KERNEL, SUBJECT), "server_cpu") == 1.5
    assert run.mounts == {SUBJECT: Mount(6.0, 0.5)}
    assert run.as_json()["runs"][0]["server_cpu"] == [1, 3, 2]


def test_guest_that_tells_nothing_is_no_run() -> None:
    collected = Collected()
    collected.take('{"machine": {}}')
    collected.take(json.dumps({"peer": SUBJECT, "mount": {"whole": 1.0, "alone": None}}))
    assert collected.run(1, 0.0) is None


def test_guest_gets_the_peers_cases_and_revision_by_name() -> None:
    peers = attached_peers()
    command = guest_command(peers[:1], KERNEL_CASES[:2], 3, "v1")
    assert command[1:] == [
        *("-m", "bench.guest", "--rounds", "3", "--peers", LIMIT),
        *("--cases", "4k read QD1", "4k write QD1", "--against", "v1"),
    ]
    assert "--against" not in guest_command(peers, KERNEL_CASES, 3)


def test_machine_s_deadline_grows_with_the_rounds() -> None:
    one, two = (machine_command("6.12", rounds) for rounds in (1, 2))
    assert one[1:5] == ["tools/vm", "run", "--kernel", "6.12"]
    seconds = [int(each[each.index("--timeout") + 1]) for each in (one, two)]
    assert seconds[1] - seconds[0] == LONGEST_ROUND


def test_attached_peer_s_command_names_the_device_or_has_one_that_does() -> None:
    for peer in attached_peers():
        assert any("{device}" in word for word in peer.attach or peer.command)
