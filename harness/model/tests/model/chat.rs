//! The chat formats of the baselines through the template engine: templates written for this test, of the constructs that the
//! models' own use (namespaces, slices, filters and methods of Python, white space control, refusals), and the text that each
//! format is known by.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ternbench_model::Tokenizer;
use ternbench_model::chat::{Message, render};

/// A tokenizer with this template, `<s>` and `</s>`.
fn with_template(template: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in Tokenizer::generated(300).unwrap().to_hugging_face().unwrap() {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let path: &Path = folder.path();
    std::fs::write(path.join("chat_template.jinja"), template).unwrap();
    Tokenizer::for_model(path).unwrap()
}

fn july() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_721_995_199)
}

fn conversation() -> Vec<Message> {
    vec![
        Message::system("Be brief."),
        Message::user(" Hi there "),
        Message::assistant("Hello!"),
        Message::user("1 < 2 & \"so\"?"),
    ]
}

const LLAMA3: &str = r#"{{- bos_token }}
{%- if custom is defined %}
    {%- set tools = custom %}
{%- endif %}
{%- if not day is defined %}
    {%- if strftime_now is defined %}
        {%- set day = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set day = "unknown" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set first = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + day + "\n\n" }}
{{- first }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.content is mapping or message.content is iterable %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

#[test]
fn llama3() {
    let text = render(&with_template(LLAMA3), &conversation(), true, july()).unwrap();
    assert_eq!(
        text,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n1 < 2 & \"so\"?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

const GEMMA3: &str = r#"{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("user and assistant must take turns") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model
' }}
{%- endif -%}
"#;

#[test]
fn gemma3() {
    let tokenizer = with_template(GEMMA3);
    let text = render(&tokenizer, &conversation(), true, july()).unwrap();
    assert_eq!(
        text,
        "<|begin_of_text|><start_of_turn>user\nBe brief.\n\nHi there<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n\
         <start_of_turn>user\n1 < 2 & \"so\"?<end_of_turn>\n<start_of_turn>model\n"
    );
    let twice = [Message::user("a"), Message::user("b")];
    let error = render(&tokenizer, &twice, true, july()).unwrap_err().to_string();
    assert!(error.contains("take turns") && !error.contains('\n'), "{error}");
}

/// Qwen2.5 and SmolLM2: ChatML, with a system turn of their own where there is none.
const CHATML: &str = r#"{%- if tools %}
    {{- raise_exception('no tools here') }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\nYou are a test.<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- if (message.role == "user") or (message.role == "system" and loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.turns == messages|length %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

#[test]
fn chatml() {
    let tokenizer = with_template(CHATML);
    assert_eq!(
        render(&tokenizer, &conversation(), true, july()).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi there <|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n\
         <|im_start|>user\n1 < 2 & \"so\"?<|im_end|>\n<|im_start|>assistant\n"
    );
    let alone = render(&tokenizer, &[Message::user("x")], false, july()).unwrap();
    assert_eq!(alone, "<|im_start|>system\nYou are a test.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n");
}

/// MiniCPM: one line, methods of Python's strings.
#[test]
fn minicpm() {
    let template = "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<用户>' + message['content'].strip() + '<AI>' }}\
                    {% else %}{{ message['content'].strip() }}{% endif %}{% endfor %}";
    let turns = [Message::user(" Hi "), Message::assistant(" Hello! "), Message::user("Bye")];
    let text = render(&with_template(template), &turns, true, july()).unwrap();
    assert_eq!(text, "<用户>Hi<AI>Hello!<用户>Bye<AI>");
}

/// JSON as Python writes it, which is what models were trained with.
#[test]
fn json_has_pythons_spaces() {
    let template = "{{ [1, 'é<'] | tojson }}|{{ {'a': 1, 'b': [2, 3]} | tojson }}|{{ [1] | tojson(indent=2) }}";
    let text = render(&with_template(template), &[Message::user("x")], false, july()).unwrap();
    assert_eq!(text, "[1, \"é<\"]|{\"a\": 1, \"b\": [2, 3]}|[\n  1\n]");
}
