"""Many prompts, each with its own settings, through AsyncLLM: each answer is taken as it is ready."""

import asyncio

from llm_decoder import AsyncLLM, SamplingParams

PROMPTS = [f"{name} went to the park and" for name in ("Anna", "Ben", "Lily", "Max", "Mia", "Tom")]


async def main() -> None:
    async with AsyncLLM() as llm:

        async def answer(index: int, prompt: str) -> str:
            (output,) = await llm.generate(prompt, SamplingParams(max_tokens=8 + 4 * index, seed=index))
            return f"{prompt}{output.outputs[0].text}"

        tasks = [asyncio.create_task(answer(index, prompt)) for index, prompt in enumerate(PROMPTS)]
        for task in asyncio.as_completed(tasks):
            print(await task)


asyncio.run(main())
