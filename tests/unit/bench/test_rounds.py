"""The order in which peers have their turns, and who is left out; with servers that are made up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import rounds
from bench.asked import LIMIT, MEMORY
from bench.cases import CONNECTIONS, FILL, FIO, HEAVY, MIXED, READ, SLOW, Backend, Case
from bench.figures import Figures, LoadError
from bench.load import Server
from bench.peers import Peer, all_peers, attached_peers
from bench.peers.ours import SUBJECT, TWO_WORKERS, USERS, at_revision
from bench.placement import Placement, Processors
from bench.pythons import ROOT
from bench.rounds import LIFE, Rounds, rotated
from bench.server import ServerError
from bench.summary import Key, Samples
from tests.support.bench_samples import figures


def peer(name: str, *backends: Backend, connections: int = 16) -> Peer:
    commands = dict.fromkeys(backends or (Backend.MEMORY,), ("true",))
    return Peer(name, commands, ("true",), "none", connections=connections, is_main=True)


class Machine:
    """Starts nothing and measures nothing, and notes the order of both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[str] = []
        self.alive: set[int] = set()
        self.measured: list[tuple[str, int]] = []
        self.placed: list[tuple[int, Placement]] = []
        self.broken: set[str] = set()
        self.failing: set[str] = set()
        monkeypatch.setattr(rounds, "measure", self.measure)
        monkeypatch.setattr(rounds, "memory_kib", lambda pid, field: pid)
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
        monkeypatch.setattr(Processors, "place", lambda _, pid, where: self._place(pid, where))

    @contextmanager
    def start(self, peer: Peer, backend: Backend) -> Iterator[Server]:
        if peer.name in self.broken:
            raise ServerError("it did not start")
        self.started.append(f"{peer.name} {backend.value}")
        pid = len(self.started)
        self.alive.add(pid)
        yield Server(pid)
        self.alive.remove(pid)

    def measure(self, case: Case, server: Server) -> Figures:
        assert server.pid in self.alive
        if case.name in self.failing:
            raise LoadError("a request failed")
        self.measured.append((case.name, server.pid))
        return figures(server.pid)

    def _place(self, pid: int, where: Placement) -> None:
        self.placed.append((pid, where))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


TWO = Processors(0, 1, frozenset({0, 1}))


def test_every_peer_has_its_turn_in_each_case_and_placement(machine: Machine) -> None:
    samples = Samples()
    peers = [peer("a"), peer("b")]
    assert Rounds(samples, peers, [READ], machine.start, TWO).run(2) == 2
    assert machine.started == ["a memory", "b memory"]
    # Both are filled, then alternate; in the second round the other one is first where it is due.
    assert machine.measured[:2] == [(FILL.name, 1), (FILL.name, 2)]
    assert [pid for _, pid in machine.measured[2:]] == [1, 2, 1, 2] * 2
    assert [where for _, where in machine.placed[:4]] == [
        *[Placement.ONE_CORE] * 2,
        *[Placement.CORE_EACH] * 2,
    ]
    assert {key: len(runs) for key, runs in samples.runs.items()} == {
        Key(READ.name, placement, name): 2
        for placement in (Placement.ONE_CORE, Placement.CORE_EACH)
        for name in "ab"
    }
    assert not machine.alive


def test_servers_are_started_anew_after_some_rounds(machine: Machine) -> None:
    samples = Samples()
    assert Rounds(samples, [peer("a")], [READ], machine.start).run(LIFE + 1) == LIFE + 1
    assert machine.started == ["a memory"] * 2
    assert len(samples.memory["a"]) == 2


def test_no_round_begins_after_the_deadline_but_one_there_is(machine: Machine) -> None:
    assert Rounds(Samples(), [peer("a")], [READ], machine.start).run(9, seconds=1e-9) <= 1
    assert Rounds(Samples(), [peer("a")], [READ], machine.start).run(3, seconds=1e9) == 3


def test_placement_that_needs_two_cores_is_left_out_on_one(machine: Machine) -> None:
    samples = Samples()
    one = Processors(0, 0, frozenset({0}))
    Rounds(
        samples, [peer("a", Backend.HEAVY, Backend.MEMORY)], [READ, HEAVY], machine.start, one
    ).run(1)
    assert [key.placement for key in samples.runs] == [Placement.ONE_CORE]


def test_peer_that_does_not_start_or_fails_leaves_the_others_theirs(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.broken, machine.failing = {"b"}, {SLOW.name}
    samples = Samples()
    peers = [peer("a", Backend.MEMORY, Backend.SLOW), peer("b")]
    Rounds(samples, peers, [SLOW, READ], machine.start).run(1)
    assert {(key.peer, key.case) for key in samples.runs} == {("a", READ.name)}
    said = capsys.readouterr().err
    assert "b is left out of these rounds: it did not start" in said
    assert f"a failed at {SLOW.name}, one core: a request failed" in said


def test_each_round_has_the_same_peers_in_another_order() -> None:
    peers = all_peers()
    orders = [[peer.name for peer in rotated(peers, number)] for number in range(3)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({order[0] for order in orders}) == 3


def test_one_connection_is_not_asked_for_four() -> None:
    only = peer("p", connections=1)
    assert [only.can(case) for case in (READ, CONNECTIONS[-1], SLOW)] == [True, False, False]


def test_what_is_not_for_all_is_asked_of_the_main_peers_only() -> None:
    either = [each for each in all_peers() if each.can(MIXED) or each.can(FIO[0])]
    assert [each.name for each in either] == [LIMIT, MEMORY, SUBJECT]
    assert [each.name for each in all_peers() if each.can(HEAVY)] == [SUBJECT, TWO_WORKERS]


def test_slow_cases_are_not_measured_in_every_round(machine: Machine) -> None:
    samples = Samples()
    Rounds(samples, [peer("a")], [READ, FIO[0]], machine.start).run(4)
    counts = {key.case: len(runs) for key, runs in samples.runs.items()}
    assert counts == {READ.name: 4, FIO[0].name: 2}


def test_missing_program_is_not_there() -> None:
    commands = {Backend.MEMORY: ("true",)}
    assert Peer("p", commands, ("true",), "none").is_there()
    assert not Peer("p", commands, ("false",), "none").is_there()
    assert not Peer("p", commands, ("no-such-program",), "none").is_there()


def test_every_peer_is_named_once() -> None:
    for peers in (all_peers(), attached_peers()):
        names = [each.name for each in peers]
        assert len(set(names)) == len(names)
        assert SUBJECT in names


def test_another_revision_is_measured_beside_ours_from_its_own_tree() -> None:
    here, then = ROOT / "here", ROOT / "then"
    for peers in (all_peers(here, ("v1", then)), attached_peers(here, ("v1", then))):
        trees = {each.name: each.tree for each in peers}
        assert (trees[SUBJECT], trees[at_revision("v1")]) == (here, then)
    trees = {each.name: each.tree for each in all_peers(here, ("v1", then))}
    assert (trees[USERS], trees[at_revision("v1", USERS)]) == (here, then)
