"""The process in which vLLM samples for a run, started by `vllm_engine` with vLLM's own Python.

It answers one message at a time, JSON over the socket whose number it is given, and ends when the
other side does. vLLM pins other versions than this project, of which nothing is imported here.
"""

# pyright: reportMissingImports=false

import ctypes
import json
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

# Of Linux's prctl: the signal that a process gets when its parent ends, however that ends.
_PR_SET_PDEATHSIG = 1

# With the default of a CPU nothing of short conversations is cached, and 16 is refused.
_BLOCK_SIZE_ON_CPU = 32

# Most tokens of prompts that are read in a step of a CPU.
_TOKENS_PER_STEP = 4096

# Added to the logit of a token that is never to be sampled: the lowest that vLLM takes.
_NEVER = -100.0

# Ranks that vLLM has kernels for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class Sampler:
    """Requests at work, a step of all of them at a time."""

    def __init__(self, options):
        import vllm
        from vllm.platforms import current_platform

        arguments = options["engine"]
        if current_platform.is_cpu():
            arguments |= {
                "enforce_eager": True,
                "block_size": _BLOCK_SIZE_ON_CPU,
                # A prompt that is read in pieces turns back a generator of random numbers, which
                # those of a CPU cannot do: "CPU Generator does not use offset".
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_TOKENS_PER_STEP, arguments["max_model_len"]),
            }
        else:
            arguments |= {
                "gpu_memory_utilization": options["gpu_memory"],
                "enable_sleep_mode": options["sleeps"],
            }
        if rank := options["lora_rank"]:
            served = next(size for size in _LORA_RANKS if size >= rank)
            arguments |= {"enable_lora": True, "max_lora_rank": served, "max_loras": 1}
        self.llm = vllm.LLM(
            **arguments,
            skip_tokenizer_init=True,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            async_scheduling=False,
            disable_log_stats=True,
            seed=0,
        )
        self.engine = self.llm.llm_engine
        self.bias = dict.fromkeys(options["unsampled"], _NEVER) or None
        self.adapter = None
        self.can_sleep = arguments.get("enable_sleep_mode", False)
        self.is_asleep = False

    def step(self, message):
        """Take in and drop requests, and let all others sample a token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if message["dropped"]:
            self.engine.abort_request(message["dropped"])
        for name, token_ids, seed, max_tokens in message["added"]:
            params = SamplingParams(
                temperature=message["temperature"],
                seed=seed,
                max_tokens=max_tokens,
                ignore_eos=True,
                logit_bias=self.bias,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            prompt = {"prompt_token_ids": token_ids}
            self.engine.add_request(name, prompt, params, lora_request=self.adapter)
        sampled = []
        for output in self.engine.step():
            (part,) = output.outputs
            log_probs = [
                scored[token].logprob
                for token, scored in zip(part.token_ids, part.logprobs, strict=True)
            ]
            cached = output.num_cached_tokens or 0
            sampled.append([output.request_id, list(part.token_ids), log_probs, cached])
        return {"sampled": sampled}

    def load(self, message):
        """Take weights, or an adapter, from a directory."""
        if message["is_adapter"]:
            from vllm.lora.request import LoRARequest

            if self.adapter is not None:
                self.engine.remove_lora(self.adapter.lora_int_id)
            number = message["version"] + 1
            self.adapter = LoRARequest(f"version {number}", number, message["path"])
            self.engine.add_lora(self.adapter)
        else:
            path = {"weights_path": message["path"]}
            self.llm.collective_rpc("reload_weights", kwargs=path)
        return {}

    def begin(self, _):
        """Forget what was read: by other weights, or of a batch that a resumed run has not seen."""
        return {"forgot": self.llm.reset_prefix_cache()}

    def sleep(self, _):
        """Leave the GPU to the learner."""
        if self.can_sleep:
            self.llm.sleep(level=1)
            self.is_asleep = True
        return {}

    def wake(self, _):
        if self.is_asleep:
            self.llm.wake_up()
        self.is_asleep = False
        return {}


def serve(connection):
    """Answer until the other side is gone, or vLLM does not start."""
    sampler = None
    while True:
        message = json.loads(connection.recv_bytes())
        try:
            if sampler is None:
                sampler, answer = Sampler(message), {}
            else:
                answer = getattr(sampler, message["do"])(message)
        except Exception as error:  # noqa: BLE001 - the other side says it
            traceback.print_exc()
            text = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {text}"}
        connection.send_bytes(json.dumps(answer).encode())
        if sampler is None:
            return


def main():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, ConnectionError):
        pass
    finally:
        sys.stdout.flush()
        # Threads of vLLM must not keep a process alive that nobody speaks with.
        os._exit(0)


if __name__ == "__main__":
    main()
