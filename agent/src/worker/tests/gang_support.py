"""Gangs of real worker processes on loopback, for the tests."""

import json
import secrets
import socket
import threading

import support



def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def spans(*sizes):
    """[first, end] of each rank, for spans of these sizes from the first layer on (the highest rank's)."""
    out, first = [], 0
    for size in sizes:
        out.insert(0, [first, first + size])
        first += size
    return out


class Gang:
    """The ranks of one gang and the agents' ends of their pipes. Ends with the `with` block, whatever happens."""

    def __init__(self, directory, layers=None, world_size=None, absent=(), gang=None, by_rank=None, hosts_of=None, programs=None, **init):
        """`layers`: spans in rank order, or None for tensor mode. `by_rank`: changes to a rank's "gang";
        `hosts_of`: ranks that get a hostfile in which the others are at this port; `programs`: of ranks that run another
        than main.py."""
        size = world_size or len(layers)
        ports = free_ports(size + 1)
        hostfile = support.scratch() / f"hosts-{ports[0]}.json"
        hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports[1:]]))
        self.control = ("127.0.0.1", ports[0])
        common = {
            "mode": "tensor" if layers is None else "pipeline",
            "backend": "ring",
            "world_size": size,
            "layers": layers or [],
            "control": f"127.0.0.1:{ports[0]}",
            "secret": secrets.token_hex(16),
            "rendezvous_timeout_ms": 60_000,
            "canary": None,
            **(gang or {}),
        }
        self.ranks = {}
        for rank in range(size):
            if rank not in absent:
                told = {**common, "rank": rank, **((by_rank or {}).get(rank, {}))}
                environment = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)}
                if rank in (hosts_of or {}):
                    elsewhere = [[f"127.0.0.1:{port if one == rank else hosts_of[rank]}"] for one, port in enumerate(ports[1:])]
                    environment["MLX_HOSTFILE"] = str(hostfile.with_suffix(f".{rank}.json"))
                    hostfile.with_suffix(f".{rank}.json").write_text(json.dumps(elsewhere))
                program = {"program": programs[rank]} if rank in (programs or {}) else {}
                self.ranks[rank] = support.WorkerProcess(
                    directory, environment=environment, rank=rank, world_size=size, gang=told, **program, **init
                )
        # The others' pipes must be read while rank 0 is listened to, as an agent does.
        self._readers = [
            threading.Thread(target=self._read, args=(worker,), daemon=True) for rank, worker in self.ranks.items() if rank
        ]
        self.codes = {}
        for reader in self._readers:
            reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """May be called twice."""
        for worker in self.ranks.values():
            if worker.process.poll() is None:
                worker.process.kill()
        for reader in self._readers:
            reader.join(support.PATIENCE_S)
        for worker in self.ranks.values():
            worker.__exit__()

    def __getitem__(self, rank):
        return self.ranks[rank]

    @property
    def lead(self):
        return self.ranks[0]

    def ready(self):
        return self.lead.until("ready")

    def run(self, rows, every=0):
        """Gives rank 0 rows, one by one as so many steps pass, or all at once; returns the results by row, in order."""
        rows = list(rows)
        wanted = len(rows)
        if not every:
            self.lead.rows(rows)
        else:
            self.lead.rows([rows.pop(0)])
            while rows:
                begun = len(self.lead.of("step"))
                self.lead.until("step", lambda event: event["n"] % every == 0)
                self.lead.rows([rows.pop(0)])
                assert len(self.lead.of("step")) > begun
        while len(self.lead.results()) < wanted:
            self.lead.until("result")
        return self.lead.results()

    def finish(self):
        self.lead.send({"op": "finish"})
        return self.to_the_end()

    def to_the_end(self):
        """Exit codes by rank, when all have ended."""
        codes = {0: self.lead.to_the_end()} if 0 in self.ranks else {}
        for reader in self._readers:
            reader.join(support.PATIENCE_S)
        return {**codes, **self.codes}

    def fatals(self):
        """The fatal event of each rank that wrote one."""
        return {rank: worker.of("fatal")[-1] for rank, worker in self.ranks.items() if worker.of("fatal")}

    def _read(self, worker):
        rank = next(rank for rank, one in self.ranks.items() if one is worker)
        try:
            self.codes[rank] = worker.to_the_end()
        except AssertionError as error:
            self.codes[rank] = str(error)
