"""States of NumPy's PCG64 generator, and how to skip draws.

PCG64 can skip any number of its 64-bit words at once, so that the draws of `Generator.uniform`, one word each, cost
nothing to skip. Those of `Generator.shuffle` cannot be skipped: it draws numbers below n, n - 1, … 2 from as many bits
as each needs, and again if the number is too large, so that how many words a shuffle takes is only known after it.
`skip_shuffle` makes the draws of a shuffle without an array.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

State = dict[str, Any]  # `bit_generator.state` of a PCG64 generator

HALF = 1 << 32
LARGEST = 1 << 31  # array that `skip_shuffle` accepts
_SAME = as_strided(np.zeros(1, np.int64), (LARGEST,), (0,))  # elements that are all at one place in memory


def generator_at(state: State) -> Generator:
    bits = PCG64(0)
    bits.state = state  # type: ignore[assignment]
    return Generator(bits)


def state_of(generator: Generator) -> State:
    """The state of a generator; equal for generators that draw the same from now on."""
    state = dict(generator.bit_generator.state)
    return state if state["has_uint32"] else {**state, "uinteger": 0}


def skip_shuffle(generator: Generator, size: int) -> None:
    """Makes the draws of a shuffle of `size` 64-bit integers."""
    generator.shuffle(_SAME[:size])


def skip_numbers(state: State, below: int, words: NDArray[np.int64]) -> State:
    """The state after, for each of `words`, a number below `below` (at most 2³²) and so many words were drawn.

    The number is drawn as by `Generator.integers` (Lemire, Fast Random Integer Generation in an Interval, 2019): it is
    the upper part of the product of `below` with half a word, and is drawn again if the lower part is among the few
    that would make some numbers more likely. A second number uses the other half of the word.
    """
    bits = generator_at(state).bit_generator
    assert isinstance(bits, PCG64)
    half = state["uinteger"] if state["has_uint32"] else None
    too_likely = HALF % below
    for count in words.tolist():
        while below > 1:
            if half is None:
                word = bits.random_raw()
                value, half = word % HALF, word >> 32
            else:
                value, half = half, None
            if value * below % HALF >= too_likely:
                break
        bits.advance(count)
    return {**bits.state, "has_uint32": int(half is not None), "uinteger": half or 0}


@cache
def can_skip() -> bool:
    """Whether the installed NumPy draws as described above, which may change between its versions."""
    generator = np.random.default_rng(1)
    skipped = generator_at(state_of(generator))
    for size in (1, 2, 1000):
        generator.shuffle(np.arange(size))
        skip_shuffle(skipped, size)
    state, below, words = state_of(generator), 3 << 30, np.arange(40)  # a quarter of the numbers is drawn again
    for count in words.tolist():
        generator.integers(5, 5 + below)
        generator.uniform(-1.0, 2.0, count)
    return state_of(skipped) == state and state_of(generator) == skip_numbers(state, below, words)
