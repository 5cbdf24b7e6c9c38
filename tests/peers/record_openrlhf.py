"""Record what OpenRLHF asks a remote reward model, and what it reads from the answer: tests/data/peers/openrlhf.json.

Its own rollout code (SingleTurnAgentExecutor) runs with a made-up engine that "generates" an answer; the reward model
is a socket that keeps what came and replies as /get_reward does. Run in an environment of its own (the recorded file
is committed, this is only to make it anew):

    python -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==5.15.0 aiohttp sympy pylatexenc
    peers/bin/pip install --no-deps openrlhf==0.11.2
    peers/bin/python tests/peers/record_openrlhf.py
"""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

TESTS = Path(__file__).parent.parent
RECORD = TESTS / "data" / "peers" / "openrlhf.json"
PROMPT = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow many? «{}»<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CASES = ((PROMPT.format("plain"), "4<|eot_id|>", 4.0), (PROMPT.format('👍\t"é\\'), "-2.5<|eot_id|>", -2.5))
"""A prompt, what is generated, and the reward it is given."""


class RewardModel(BaseHTTPRequestHandler):
    """Keeps requests; answers each with the reward of its case."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012  # of the one server there is

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers.pop("host")
        reward = CASES[len(self.asked)][2]
        reply = {"rewards": [reward], "scores": [reward]}
        self.asked.append({"path": self.path, "headers": headers, "body": body, "reply": reply})
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


async def rollout(url: str, prompt: str, answer: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(TESTS / "data" / "tokenizers" / "llama3")

    async def generate(ids: list[int], *_: Any, **__: Any) -> Any:
        generated = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=generated, finish_reason="stop", logprobs=None)])

    sampling = SimpleNamespace(max_tokens=64, logprobs=None)
    engine = SimpleNamespace(generate=generate)
    executor = SingleTurnAgentExecutor(url)
    output: dict[str, Any] = await executor.execute(prompt, "a label", sampling, 2048, tokenizer, engine)
    return {name: output[name] for name in ("reward", "scores", "extra_logs")}


def main() -> None:
    server = HTTPServer(("127.0.0.1", 0), RewardModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/get_reward"
    outputs = [asyncio.run(rollout(url, prompt, answer)) for prompt, answer, _ in CASES]
    server.shutdown()
    rollouts = [{**asked, "read": output} for asked, output in zip(RewardModel.asked, outputs, strict=True)]
    document = {"openrlhf": version("openrlhf"), "rollouts": rollouts}
    RECORD.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{RECORD}: {len(rollouts)} rollouts")


if __name__ == "__main__":
    main()
