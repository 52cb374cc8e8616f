"""Calls captured in CUDA graphs, one graph per input set."""

from collections.abc import Callable

import torch

from hmc_fast.bench.measuring.clock import TimedCall

WARM_UP_CALLS = 3


def capture(call: TimedCall, input_sets: int, device: torch.device) -> TimedCall:
    """A call that replays ``call``, preparation included.

    Warm-up and capture share a side stream, and the graphs share a memory pool: their results are
    not kept apart. Raises whatever the capture raises for work that a graph cannot hold.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for i in range(max(WARM_UP_CALLS, input_sets)):
            call.run(call.prepare(i % input_sets))
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    pool = torch.cuda.graph_pool_handle()
    replays: list[Callable[[], None]] = []
    for i in range(input_sets):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            call.run(call.prepare(i))
        replays.append(graph.replay)
    return TimedCall(run=lambda replay: replay(), prepare=lambda i: replays[i])
