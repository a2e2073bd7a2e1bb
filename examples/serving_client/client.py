"""Call `pft serve` from Python with the openai package: `python client.py [URL]`.

PFT_API_KEY in the environment is the key, for a server that has keys; any other server takes every key.
"""

import os
import sys

from openai import OpenAI

SCENARIO = "The school has given Samir a caravan without a word."
OPTIONS = ["prudently rent the caravan", "audaciously rent the caravan"]


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("PFT_API_KEY", "none"), max_retries=5)
    for pole in ("Daring", "Careful"):
        body = {"scenario": SCENARIO, "options": OPTIONS, "preference": pole}
        chosen = client.post("/choose", body=body, cast_to=object)
        print(f"{pole} chooses: {chosen['option']}")

    stream = client.chat.completions.create(
        model="policy",
        messages=[{"role": "user", "content": SCENARIO}],
        max_tokens=12,
        temperature=0,
        stream=True,
        extra_body={"preference": "Careful"},
    )
    print("Careful writes: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
