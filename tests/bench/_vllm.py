"""vLLM as a worker of `bench engine`; runs in an environment of its own, which has vllm and not us.

    PEER/bin/python tests/bench/_vllm.py '{"model": FOLDER, "dtype": ..., "threads": 2, ...}'

Speaks as _offline.py does. Its engine core runs in this process, as its helper processes would
fight over few cores.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def serve(engine: Any, asked: list[Any], name: str) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    started_at = time.perf_counter()
    instants: dict[str, list[float]] = {}
    ids: dict[str, list[int]] = {}
    for number, (prompt, length) in enumerate(asked):
        key = f"{name}-{number}"
        params = SamplingParams(
            temperature=0.0,
            max_tokens=length,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        engine.add_request(key, {"prompt_token_ids": prompt}, params)
        instants[key], ids[key] = [], []
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - started_at
        for output in outputs:
            key = output.request_id
            if key not in ids:  # newer versions add a suffix of their own
                key = next(k for k in ids if output.request_id.startswith(f"{k}-"))
            new = list(output.outputs[0].token_ids)
            instants[key] += [now] * len(new)
            ids[key] += new
    seconds = time.perf_counter() - started_at
    return {"seconds": seconds, "instants": [*instants.values()], "ids": [*ids.values()]}


def main() -> None:
    # vLLM prints on standard output; what is meant for the benchmark goes where that was.
    answers, sys.stdout = sys.stdout, sys.stderr
    told = json.loads(sys.argv[1])
    started_at = time.perf_counter()
    import torch
    import vllm

    model = vllm.LLM(
        model=told["model"],
        dtype=told["dtype"],
        max_model_len=4096,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        seed=0,
    )
    about = {
        "engine": "vllm",
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": told["dtype"],
        "threads": torch.get_num_threads(),
        "start_s": time.perf_counter() - started_at,
    }
    print(json.dumps(about), file=answers, flush=True)
    for number, line in enumerate(sys.stdin):
        result = serve(model.llm_engine, json.loads(line), str(number))
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
