"""Every interleaving of a few ranks, searched over the very core that runs over MPI.

A rank of ``protocol.BoundedLag`` is deterministic, and all it ever learns from the others are the answers to its looks
(``Memory.arrived``). One call is therefore a list of operations on the memory that depends on nothing but the core's
attributes when the call began and on those answers. ``Rank`` takes the list down from the core itself, once for each
distinct beginning; ``Space`` interleaves the lists of all ranks, one operation at a time. A row of blocks, or of
counters, is as many stores.

The memory is as treacherous as the core must expect. A store to another rank becomes visible at any later moment, and
two of them in any order unless they go to the same place; a fence waits until all are visible. What a rank was handed
may still be read until the first fence of its next call; and no call may return before a fence has followed its look.

A step is a store that becomes visible, or an entry, a fence or a look together with all that follows up to the next of
these. What follows are stores of which others see nothing yet, stores to the rank's own memory, which nobody else
reads, and the return, which breaks the bound the sooner it comes. So nothing is lost by not stopping there.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from blslib.collective.protocol import BoundedLag, slots

T = TypeVar("T")

Script = Sequence[int | None]
"""The calls of a rank: None posts the next iteration, n waits for the first n iterations and takes what is complete;
``COMPOSE`` writes the next iteration's blocks in place, which are posted without another store."""

COMPOSE = -1

LATER = -(10**9)
"""What a look sees that comes too early, whatever it waits for."""


def post_and_drain(iterations: int) -> Script:
    return [None] * iterations + [iterations]


def compose_post_and_drain(iterations: int) -> Script:
    return [COMPOSE, None] * iterations + [iterations]


class Fault(AssertionError):
    """The protocol broke its contract."""


class Paused(Exception):
    """The core looks, and it is not known yet what it sees."""


class Numbered(list[T]):
    """Different things, each found again by its number."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[T, int] = {}

    def number(self, thing: T) -> int:
        known = self._numbers.setdefault(thing, len(self))
        if known == len(self):
            self.append(thing)
        return known


class Op(NamedTuple):
    kind: str
    one: int = 0
    two: int = 0


FENCE = Op("fence", 1)


class Transcript:
    """A ``protocol.Memory`` that notes what it is asked for; every look is refused so often, then answered."""

    def __init__(self, layout: "Layout", rank: int, told: tuple[int, ...], refusals: int) -> None:
        self.layout, self.rank, self.refusals = layout, rank, refusals
        self.answers = iter([answer for sees in told for answer in [LATER] * refusals + [sees]])
        self.rooms = iter([False] * refusals)
        self.ops = [Op("enter")]
        self.peers = range(layout.size)
        self.in_place: Sequence[Any] | None = None

    def compose(self, slot: int, sizes: Sequence[Any]) -> None:
        """``sizes``: the blocks, which whoever composes stores at some time after this."""
        self.rooms = iter(())
        self.write(slot, sizes)

    def write(self, slot: int, blocks: Sequence[Any]) -> bool:
        if not next(self.rooms, True):
            return False
        if blocks is self.in_place:
            return True
        peers = [peer for peer in self.peers if blocks]
        self.ops += [Op("store", self.layout.cell(peer, slot, self.rank), blocks[peer]) for peer in peers]
        return True

    def publish(self, count: int) -> None:
        self.ops += [Op("store", self.layout.counter(peer, self.rank), count) for peer in self.peers]

    def fence(self) -> None:
        self.ops.append(FENCE)

    def fence_stores(self) -> None:
        """A fence that orders stores alone, for a mistaken core."""
        self.ops.append(Op("fence"))

    def arrived(self) -> int:
        sees = next(self.answers, None)
        if sees != LATER:
            self.ops.append(Op("look"))
        if sees is None:
            raise Paused
        return sees

    def read(self, slot: int) -> Any:
        return slot


class Layout:
    """Numbers for the places of the shared memory, and for blocks, into which the core never looks."""

    def __init__(self, size: int, bound: int) -> None:
        self.size, self.stride = size, size * (1 + slots(bound))
        self.places = size * self.stride

    def counter(self, receiver: int, source: int) -> int:
        return receiver * self.stride + source

    def cell(self, receiver: int, slot: int, source: int) -> int:
        return receiver * self.stride + self.size * (1 + slot) + source

    def block(self, iteration: int, source: int, receiver: int) -> int:
        return 1 + (iteration * self.size + source) * self.size + receiver

    def iteration(self, block: int) -> int:
        return (block - 1) // self.size**2

    def name(self, block: int) -> str:
        source, receiver = divmod((block - 1) % self.size**2, self.size)
        return f"iteration {self.iteration(block)} from rank {source} to rank {receiver}"

    def is_counter(self, place: int) -> bool:
        return place % self.stride < self.size

    def words(self, place: int, value: int) -> str:
        receiver, offset = divmod(place, self.stride)
        if offset < self.size:
            return f"the counter of rank {offset} at rank {receiver} becomes {value}"
        slot = offset // self.size - 1
        return f"the block of {self.name(value)} appears in slot {slot}"


class Point(NamedTuple):
    """Where a rank stands, as far as it knows itself."""

    call: int  # of its script
    core: tuple  # the core's attributes when the call began
    taken: int  # iterations handed out when the call began
    told: tuple[int, ...]  # what its looks in this call saw, those left out that it refused
    at: int  # operations of this call that are behind it
    buffer: tuple[tuple[int, int], ...]  # stores that are not visible yet: place and value
    done: int  # iterations that it is done with, so far as a fence confirms it


class Move(NamedTuple):
    """What a step of one rank does."""

    stores: tuple[tuple[int, int], ...]  # become visible
    takes: tuple[tuple[int, int], ...]  # iterations handed out, and from which slot
    posts: int  # calls of post returned when the step is over; 0 if it does not return from one
    fault: str | None  # what can be seen to be wrong without a look at the others
    to: int


class Stand(NamedTuple):
    """What the others, and the rules, need to know of a point."""

    next: str  # enter, fence, look or end
    buffer: tuple[tuple[int, int], ...]
    done: int
    own: int  # iterations that it is done with when its next stores reach its own memory
    entered: int  # calls of post
    due: int  # complete iterations with which the call that it is in must return
    commits: tuple[int, ...]  # positions of the buffer that may become visible next


class Rank:
    """The life of one rank as an automaton; points are known by their numbers."""

    def __init__(self, rank: int, layout: Layout, bound: int, script: Script, core: type[BoundedLag]) -> None:
        self.rank, self.layout, self.bound, self.script, self.core = rank, layout, bound, tuple(script), core
        self.points: Numbered[Point] = Numbered()
        first = self._attributes(core(bound, Transcript(layout, rank, (), 0)))
        self.start = self.points.number(Point(0, first, 0, (), 0, (), 0))
        self.stand, self.commit, self.step = cache(self._stand), cache(self._commit), cache(self._step)
        self._call = cache(self._call_checked)

    @staticmethod
    def _attributes(core: BoundedLag) -> tuple:
        return tuple(sorted((name, value) for name, value in vars(core).items() if name != "memory"))

    def _posts(self, calls: int) -> int:
        return self.script[:calls].count(None)

    def _transcribe(
        self, call: int, attributes: tuple, told: tuple[int, ...], refusals: int
    ) -> tuple[list[Op], list[Any], tuple | None]:
        """Run one call of the core: its operations, the arrivals, and the attributes at its end if it came there."""
        memory, through = Transcript(self.layout, self.rank, told, refusals), self.script[call]
        core = self.core(self.bound, memory)
        vars(core).update(attributes)
        blocks: list[Any] = [self.layout.block(self._posts(call), self.rank, peer) for peer in range(self.layout.size)]
        if through is None and call and self.script[call - 1] == COMPOSE:
            memory.in_place = blocks
        act, of = (core.compose, blocks) if through == COMPOSE else (core.wait, through)
        try:
            for _ in core.post(blocks) if through is None else act(of) or ():
                pass
            takes = [(arrival.iteration, arrival.blocks) for arrival in core.deliver()]
        except Paused:
            return memory.ops, [], None
        return memory.ops, takes, self._attributes(core)

    def _call_checked(self, call: int, attributes: tuple, told: tuple[int, ...]) -> tuple:
        """As ``_transcribe``; makes sure that a refused look leaves no trace in a rank, as the search supposes."""
        straight = self._transcribe(call, attributes, told, 0)
        if self._transcribe(call, attributes, told, 2) != straight:
            raise Fault(f"rank {self.rank} does something else in call {call} after a look that it refused")
        return straight

    def _stand(self, number: int) -> Stand:
        point = self.points[number]
        posts, kind, due, own = self._posts(point.call), "end", 0, point.taken
        if point.call < len(self.script):
            through = self.script[point.call]
            kind = self._call(point.call, point.core, point.told)[0][point.at].kind
            due = max(0, posts + 1 - self.bound) if through is None else max(0, through)
            posts += point.at > 0 and through is None
            if through == COMPOSE:  # no call that ends what may be read, so that its own stores must heed that as well
                own = point.done
        places = [place for place, _ in point.buffer]
        commits = tuple(i for i, place in enumerate(places) if place not in places[:i])
        return Stand(kind, point.buffer, point.done, own, posts, due, commits)

    def _commit(self, number: int, which: int) -> Move:
        point = self.points[number]
        rest = point.buffer[:which] + point.buffer[which + 1 :]
        return Move((point.buffer[which],), (), 0, None, self.points.number(point._replace(buffer=rest)))

    def _step(self, number: int, sees: int | None) -> Move | None:
        """Do what comes next, and all that follows up to the next entry, fence or look. None: the look is refused."""
        point, kind = self.points[number], self.stand(number).next
        told = point.told if sees is None else (*point.told, sees)
        ops, takes, end = self._call(point.call, point.core, told)
        at = point.at + 1
        if kind == "look" and end is None and ops[at:] == [Op("look")]:
            return None
        stores = []
        while at < len(ops) and ops[at].kind == "store":
            stores.append((ops[at].one, ops[at].two))
            at += 1
        seen = tuple(store for store in stores if store[0] // self.layout.stride == self.rank)
        buffer = point.buffer + tuple(store for store in stores if store not in seen)
        done = point.taken if ops[point.at] == FENCE else point.done
        if at < len(ops) or end is None:
            return Move(
                seen, (), 0, None, self.points.number(point._replace(told=told, at=at, buffer=buffer, done=done))
            )
        taken = point.taken + len(takes)
        posts = self._posts(point.call + 1) if self.script[point.call] is None else 0
        fault = None
        if [iteration for iteration, _ in takes] != list(range(point.taken, taken)):
            fault = f"rank {self.rank} was handed iterations {[i for i, _ in takes]}, the next one was {point.taken}"
        elif taken < (due := self.stand(number).due):
            fault = f"rank {self.rank} was handed {taken} iterations, {due} were due"
        elif kind == "look":
            fault = f"rank {self.rank} returns with no fence behind its look, so what follows may run ahead of it"
        to = self.points.number(Point(point.call + 1, end, taken, (), 0, buffer, done))
        return Move(seen, tuple(takes), posts, fault, to)


State = tuple[int, ...]
"""Where every rank stands, then what is in the memory, all by number."""

Action = tuple[int, int]
"""A rank, and the position in its buffer of a store that becomes visible; -1 for what the rank itself does next."""


class Space:
    """All states that P ranks can be in, and the rules for every step between them."""

    def __init__(
        self, size: int, bound: int, scripts: Sequence[Script] | Script, core: type[BoundedLag] = BoundedLag
    ) -> None:
        """``scripts``: the calls of every rank, or those of each rank."""
        each = scripts if scripts and isinstance(scripts[0], Sequence) else [scripts] * size
        self.size, self.bound, self.layout = size, bound, Layout(size, bound)
        self.ranks = [Rank(rank, self.layout, bound, each[rank], core) for rank in range(size)]  # type: ignore[arg-type]
        self.contents: Numbered[tuple[int, ...]] = Numbered()
        self.start: State = (*(rank.start for rank in self.ranks), self.contents.number((0,) * self.layout.places))
        self._sees = cache(self._least_counter)

    def _least_counter(self, memory: int, rank: int) -> int:
        first = self.layout.counter(rank, 0)
        return min(self.contents[memory][first : first + self.size])

    def moves(self, state: State) -> Iterator[tuple[Action, Move]]:
        """Every step that is possible now.

        Raises:
            Fault: a rank waits for what it has, or all ranks wait for ever.
        """
        some = over = 0
        for r, rank in enumerate(self.ranks):
            stand = rank.stand(state[r])
            for which in stand.commits:
                some += 1
                yield (r, which), rank.commit(state[r], which)
            move = None
            if stand.next == "look":
                sees = self._sees(state[-1], r)
                move = rank.step(state[r], sees)
                if move is None and sees >= stand.due:
                    raise Fault(f"rank {r} waits although it sees {sees} iterations complete and {stand.due} are due")
            elif stand.next == "enter" or (stand.next == "fence" and not stand.buffer):
                move = rank.step(state[r], None)
            if move is not None:
                some += 1
                yield (r, -1), move
            over += stand.next == "end"
        if not some and over < self.size:
            entered = [rank.stand(state[r]).entered for r, rank in enumerate(self.ranks)]
            raise Fault(f"deadlock: nothing can happen any more after {entered} calls of post")

    def after(self, state: State, action: Action, move: Move) -> State:
        """The state after a step.

        Raises:
            Fault: the step breaks a promise.
        """
        (actor, _), layout, memory = action, self.layout, state[-1]
        for place, value in move.stores:
            contents = self.contents[memory]
            old, receiver = contents[place], place // layout.stride
            if old and not layout.is_counter(place):
                stand = self.ranks[receiver].stand(state[receiver])
                if layout.iteration(old) >= (stand.own if receiver == actor else stand.done):
                    raise Fault(
                        f"rank {actor} overwrites iteration {layout.iteration(old)} with {layout.iteration(value)} "
                        f"at rank {receiver}, which is not done with it"
                    )
            memory = self.contents.number((*contents[:place], value, *contents[place + 1 :]))
        for iteration, slot in move.takes:
            first = layout.cell(actor, slot, 0)
            found = self.contents[memory][first : first + self.size]
            for source, block in enumerate(found):
                if block != layout.block(iteration, source, actor):
                    raise Fault(
                        f"rank {actor} takes iteration {iteration} from slot {slot}, where the block of rank {source} "
                        + (f"holds {layout.name(block)}" if block else "was never written")
                    )
        if move.posts:
            for other, rank in enumerate(self.ranks):
                entered = move.posts if other == actor else rank.stand(state[other]).entered
                if move.posts - entered > self.bound:
                    raise Fault(
                        f"rank {actor} returned from {move.posts} calls when rank {other} had entered {entered}: "
                        f"the bound is {self.bound}"
                    )
        if move.fault:
            raise Fault(move.fault)
        return (*state[:actor], move.to, *state[actor + 1 : -1], memory)

    def words(self, state: State, action: Action, move: Move) -> str:
        """What happens in a step, for a reader."""
        r, which = action
        if which >= 0:
            return self.layout.words(*move.stores[0])
        rank, stand = self.ranks[r], self.ranks[r].stand(state[r])
        through = rank.script[rank.points[state[r]].call]
        call = f"post {stand.entered - (stand.next != 'enter')}" if through is None else f"a wait for {through}"
        if through == COMPOSE:
            call = f"its blocks for post {stand.entered}, which it composes"
        text = {
            "enter": f"rank {r} enters {call}",
            "fence": f"rank {r} passes its fence",
            "look": f"rank {r} looks and sees {self._sees(state[-1], r)} complete",
        }[stand.next]
        if rank.points[move.to].call > rank.points[state[r]].call:
            text += f", returns from {call}" + "".join(f", takes iteration {i}" for i, _ in move.takes)
        return text


class Found(NamedTuple):
    """What a search found: how many states and steps; and, after a shortest schedule to a fault, its words."""

    states: int
    steps: int
    fault: str | None
    schedule: list[str]


def search(space: Space) -> Found:
    """Visit every state, those first that are fewest steps away; stop at the first fault."""
    parents: dict[State, State | None] = {space.start: None}
    queue, steps = deque([space.start]), 0
    while queue:
        state, words = queue.popleft(), []
        try:
            for action, move in space.moves(state):
                steps += 1
                words = [(action, move)]
                to = space.after(state, action, move)
                words = []
                if to not in parents:
                    parents[to] = state
                    queue.append(to)
        except Fault as fault:
            last = [space.words(state, *step) for step in words]
            return Found(len(parents), steps, str(fault), [*_schedule(space, parents, state), *last, str(fault)])
    return Found(len(parents), steps, None, [])


def _schedule(space: Space, parents: dict[State, State | None], state: State) -> list[str]:
    lines = []
    while (parent := parents[state]) is not None:
        lines.append(
            next(
                space.words(parent, action, move)
                for action, move in space.moves(parent)
                if space.after(parent, action, move) == state
            )
        )
        state = parent
    return lines[::-1]
