"""Chat templates that hold tool calls, as the families of models have them, in small.

Each writes the delimiters and the tool turns of its family; what models are told about the tools is
shorter than in the originals.
"""

from tests.small_models import CHATML, TokenizerKind

_CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

_QWEN_SYSTEM = (
    "{%- if tools -%}<|im_start|>system\n"
    "{{- messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' -}}"
    "# Tools\nWrite a call as JSON in <tool_call></tool_call>.\n"
    "<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>"
    "<|im_end|>\n{% elif messages[0]['role'] == 'system' -%}"
    "<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n{% endif -%}"
)
# Replies go into a user's turn, and replies that follow one another into the same one.
_QWEN_TOOL = (
    "{%- elif message['role'] == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}"
    "<|im_start|>user{% endif -%}"
    "{{- '\n<tool_response>\n' + message['content'] + '\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}"
    "{{- '<|im_end|>\n' -}}{%- endif -%}"
)
_QWEN_OPENING = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
_SKIP_SYSTEM = "{%- if message['role'] == 'system' and loop.first -%}"

QWEN25_TEMPLATE = (
    f"{_QWEN_SYSTEM}{{%- for message in messages -%}}{_SKIP_SYSTEM}"
    "{%- elif message['role'] in ('user', 'assistant', 'system') -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    f"{_QWEN_TOOL}{{%- endif -%}}{{%- endfor -%}}{_QWEN_OPENING}"
)

# Thoughts are dropped from all turns before the last question; a turn after it that has none gets
# an empty one where it is the last.
QWEN3_TEMPLATE = (
    f"{_QWEN_SYSTEM}"
    "{%- set last = namespace(question=0) -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{%- set last.question = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    f"{{%- for message in messages -%}}{_SKIP_SYSTEM}"
    "{%- elif message['role'] in ('user', 'system') -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- set thought = message['content'].split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in message['content'] else '' -%}"
    "{%- set said = message['content'].split('</think>')[-1].lstrip('\n') -%}"
    "{{- '<|im_start|>assistant\n' -}}"
    "{%- if loop.index0 > last.question and (loop.last or thought) -%}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- said + '<|im_end|>\n' -}}"
    f"{_QWEN_TOOL}{{%- endif -%}}{{%- endfor -%}}{_QWEN_OPENING}"
)

# Tools are shown in XML, and so are calls.
QWEN3_CODER_TEMPLATE = (
    "{%- if tools -%}<|im_start|>system\n"
    "{{- messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' -}}"
    "# Tools\n<tools>{% for tool in tools %}\n<function>\n<name>{{ tool.function.name }}</name>"
    "\n<description>{{ tool.function.description }}</description>\n</function>{% endfor %}"
    "\n</tools>"
    "\nCall one like this:\n<tool_call>\n<function=name>\n<parameter=x>\nvalue\n</parameter>\n"
    "</function>\n</tool_call><|im_end|>\n"
    "{% elif messages[0]['role'] == 'system' -%}"
    "<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n{% endif -%}"
    f"{{%- for message in messages -%}}{_SKIP_SYSTEM}"
    "{%- elif message['role'] in ('user', 'assistant', 'system') -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') -}}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{- '\n<tool_call>\n<function=' + call.function.name + '>\n' -}}"
    "{%- for name, value in call.function.arguments | items -%}"
    "{{- '<parameter=' + name + '>\n' + (value if value is string else value | tojson) -}}"
    "{{- '\n</parameter>\n' -}}{%- endfor -%}"
    "{{- '</function>\n</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}"
    f"{_QWEN_TOOL}{{%- endif -%}}{{%- endfor -%}}{_QWEN_OPENING}"
)

# Calls are shown as JSON, and written as names of arguments with values (GLM 4.5).
OTHER_CALLS_TEMPLATE = QWEN3_CODER_TEMPLATE.replace(
    "<function=' + call.function.name + '>", "' + call.function.name + '"
)

# A reply is written as JSON, in a turn of its own that is called ipython.
LLAMA3_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}"
    "{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' -}}"
    "{%- if tools and loop.first -%}{%- for tool in tools -%}{{- tool | tojson -}}{{- '\n' -}}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if role == 'ipython' -%}{{- message['content'] | tojson -}}"
    "{%- else -%}{{- message['content'] | trim -}}{%- endif -%}"
    "{{- '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)

CHATML_KIND = TokenizerKind(_CHATML_SPECIAL, _CHATML_ROLES, CHATML)
QWEN25_KIND = TokenizerKind(_CHATML_SPECIAL, _CHATML_ROLES, QWEN25_TEMPLATE)
QWEN3_CODER_KIND = TokenizerKind(_CHATML_SPECIAL, _CHATML_ROLES, QWEN3_CODER_TEMPLATE)
QWEN3_KIND = TokenizerKind(_CHATML_SPECIAL, _CHATML_ROLES, QWEN3_TEMPLATE)
LLAMA3_KIND = TokenizerKind(
    ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    LLAMA3_TEMPLATE,
    begins_with_bos=True,
)
TOOL_KINDS = {
    "chatml": CHATML_KIND,
    "qwen2.5": QWEN25_KIND,
    "qwen3": QWEN3_KIND,
    "qwen3-coder": QWEN3_CODER_KIND,
    "llama3": LLAMA3_KIND,
}
