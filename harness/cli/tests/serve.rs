//! `ternbench serve` as clients meet it, and `ternbench eval --via` against it.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{root, write_byte_tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tokenizer for the synthetic models, with a chat template.
fn write_tokenizer(path: &Path) {
    write_byte_tokenizer(path);
    let config = json!({"chat_template":
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"});
    std::fs::write(path.with_file_name("tokenizer_config.json"), config.to_string()).unwrap();
}

struct Server {
    child: Child,
    address: String,
    folder: TempDir,
}

impl Server {
    fn start(extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = folder.path().join("tokenizer.json");
        write_tokenizer(&tokenizer);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
        command.current_dir(root()).args(["serve", "-m", "synthetic:llama-tiny", "-t", "2", "--port", "0"]);
        command.arg("--tokenizer").arg(&tokenizer).args(extra).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap().split(' ').next().unwrap().trim().to_owned();
        Self { child, address, folder }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
        stream
    }

    /// Sends bytes as they are; the status and everything behind the head.
    fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        self.raw((head + body).as_bytes())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.send("POST", path, &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    fn complete(&self, body: &Value) -> Value {
        let (status, value) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{value}");
        value
    }

    fn health(&self) -> Value {
        serde_json::from_str(&self.send("GET", "/health", "").1).unwrap()
    }

    fn wait_until_cancelled(&self) {
        let start = Instant::now();
        while self.health() != json!({"status": "ok", "open": 0, "cancelled": 2}) {
            assert!(start.elapsed() < Duration::from_secs(60), "work goes on for nobody");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[cfg(unix)]
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a stream: the pieces of chunked coding put together, `[DONE]` checked and left out.
fn events(chunked: &str) -> Vec<Value> {
    let mut data: Vec<&str> = chunked.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{chunked}");
    data.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn concurrent_requests_get_what_each_gets_alone() {
    let server = Server::start(&[]);
    let bodies: Vec<Value> = (0..12)
        .map(|i| {
            let prompt = format!("Item {i}: {}", "the same words again ".repeat(1 + i % 3));
            json!({"prompt": prompt, "max_tokens": 5 + i, "temperature": if i % 2 == 0 { 0.0 } else { 0.9 },
                "seed": i, "logprobs": i % 3, "echo": i % 4 == 0})
        })
        .collect();
    let alone: Vec<Value> = bodies.iter().map(|body| server.complete(body)["choices"].take()).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| server.complete(body)["choices"].take())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    // An array of prompts is the same again, in order.
    let prompts: Vec<&Value> = bodies.iter().map(|body| &body["prompt"]).collect();
    let all = server.complete(&json!({"prompt": prompts, "max_tokens": 5, "temperature": 0}));
    assert_eq!(all["choices"].as_array().unwrap().len(), 12);
    assert_eq!(all["choices"][0]["token_ids"], alone[0][0]["token_ids"]);
    assert_eq!(all["choices"][3]["index"], 3);
}

#[test]
fn echoed_log_probabilities_are_those_of_the_engine() {
    let server = Server::start(&[]);
    let text = "Héllo";
    let echoed =
        server.complete(&json!({"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": true}));
    let choice = &echoed["choices"][0];
    let logprobs = &choice["logprobs"];
    assert!(choice["text"].as_str().unwrap().starts_with(text));
    assert_eq!(echoed["usage"], json!({"prompt_tokens": 6, "completion_tokens": 1, "total_tokens": 7}));
    // Two tokens make the é; one is generated.
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2, 3, 4, 5]));
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    // The engine's own logits by another command.
    let ids: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
    command.current_dir(root()).args([
        "model",
        "logits",
        "-m",
        "synthetic:llama-tiny",
        "--all-positions",
        "-o",
        "json",
    ]);
    let output = command.args(["--ids", &ids.join(",")]).output().unwrap();
    let logits: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (i, &target) in text.as_bytes().iter().enumerate().skip(1) {
        let row: Vec<f64> = logits["logits"][i - 1].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        let expected = row[usize::from(target)] - sum.ln();
        let given = logprobs["token_logprobs"][i].as_f64().unwrap();
        assert!((given - expected).abs() < 1e-5, "token {i}: {given}, not {expected}");
        let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max) - sum.ln();
        let top = logprobs["top_logprobs"][i].as_object().unwrap().values().map(|x| x.as_f64().unwrap());
        assert!((top.fold(f64::NEG_INFINITY, f64::max) - best).abs() < 1e-5);
    }
    // The same as token ids.
    let ids: Vec<u8> = text.bytes().collect();
    let by_ids = server.complete(&json!({"prompt": ids, "max_tokens": 0, "logprobs": 2, "echo": true}));
    let by_ids = &by_ids["choices"][0];
    assert_eq!((by_ids["text"].as_str(), &by_ids["token_ids"]), (Some(text), &json!([])));
    assert_eq!(
        by_ids["logprobs"]["token_logprobs"].as_array().unwrap()[..],
        logprobs["token_logprobs"].as_array().unwrap()[..6]
    );
}

#[test]
fn streams_say_the_same_as_whole_answers() {
    let server = Server::start(&[]);
    let mut body = json!({"prompt": ["One", "Two"], "max_tokens": 40, "temperature": 0, "logprobs": 0, "echo": true});
    let whole = server.complete(&body);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (status, text) = server.send("POST", "/v1/completions", &body.to_string());
    let events_ = events(&text);
    assert_eq!(status, 200);
    assert!(events_.len() > 4, "it comes in pieces");
    for which in 0..2 {
        let choice = &whole["choices"][which];
        let mine = || events_.iter().flat_map(|e| e["choices"].as_array().unwrap()).filter(|c| c["index"] == which);
        let pieces: String = mine().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!(pieces, choice["text"].as_str().unwrap());
        let log_probs: Vec<&Value> =
            mine().flat_map(|piece| piece["logprobs"]["token_logprobs"].as_array().unwrap()).collect();
        assert_eq!(log_probs, choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().collect::<Vec<_>>());
        assert_eq!(mine().next_back().unwrap()["finish_reason"], choice["finish_reason"]);
    }
    assert_eq!(events_.last().unwrap()["usage"], whole["usage"]);
    // A stop string: the text before its first appearance, in both forms.
    let mut body = json!({"prompt": "One", "max_tokens": 200, "seed": 1});
    let made = server.complete(&body)["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = made.chars().skip(made.chars().count() / 2).take(2).collect();
    body["stop"] = json!([stop, "never"]);
    let stopped = server.complete(&body);
    assert_eq!(stopped["choices"][0]["text"].as_str(), made.split(&stop).next());
    assert_eq!(
        (&stopped["choices"][0]["finish_reason"], &stopped["choices"][0]["stop_reason"]),
        (&json!("stop"), &json!(stop))
    );
    body["stream"] = json!(true);
    let (_, text) = server.send("POST", "/v1/completions", &body.to_string());
    let pieces: String = events(&text).iter().map(|e| e["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(Some(pieces.as_str()), stopped["choices"][0]["text"].as_str());
    // A conversation is its template's text.
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "temperature": 0});
    let (status, answer) = server.post("/v1/chat/completions", &chat);
    assert_eq!((status, &answer["object"]), (200, &json!("chat.completion")), "{answer}");
    let plain = server.complete(&json!({"prompt": "<user>Hi<assistant>", "max_tokens": 20, "temperature": 0}));
    assert_eq!(answer["choices"][0]["message"]["content"], plain["choices"][0]["text"]);
    let mut chat = chat;
    chat["stream"] = json!(true);
    let (_, text) = server.send("POST", "/v1/chat/completions", &chat.to_string());
    let content = |e: &Value| e["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    let pieces: String = events(&text).iter().map(content).collect();
    assert_eq!(Some(pieces.as_str()), plain["choices"][0]["text"].as_str());
}

#[test]
fn mistakes_get_an_answer_that_names_them() {
    let server = Server::start(&["--body-mb", "0.01", "--queue", "0", "--batch", "3"]);
    let refused = |body: &Value, status: u16, param: Value, code: Value| {
        let (given, answer) = server.post("/v1/completions", body);
        let error = &answer["error"];
        assert_eq!((given, &error["param"], &error["code"]), (status, &param, &code), "{answer}");
        assert!(!error["message"].as_str().unwrap().contains('\n') && error["type"].is_string());
    };
    refused(&json!({"prompt": "a", "min_p": 0.5}), 400, json!("min_p"), json!("unknown_field"));
    refused(&json!({"prompt": "a", "temperature": -1}), 400, json!("temperature"), Value::Null);
    refused(&json!({"prompt": ""}), 400, json!("prompt"), Value::Null);
    refused(&json!({"prompt": [1, 99_999]}), 400, json!("prompt"), Value::Null);
    refused(&json!({"prompt": "a", "model": "other"}), 404, json!("model"), json!("model_not_found"));
    refused(&json!({"prompt": "a", "max_tokens": 99_999}), 400, json!("prompt"), json!("context_length_exceeded"));
    refused(&json!({"prompt": ["a", "b", "c", "d"]}), 400, json!("prompt"), Value::Null);
    let error = |(status, body): (u16, String)| {
        (status, serde_json::from_str::<Value>(&body).unwrap()["error"]["message"].as_str().unwrap().to_owned())
    };
    let (status, message) = error(server.send("POST", "/v1/completions", "{\"prompt\": "));
    assert!(status == 400 && message.contains("not JSON"), "{message}");
    let (status, message) = error(server.send("POST", "/v1/completions", &" ".repeat(20_000)));
    assert!(status == 413 && message.contains("20000 bytes"), "{message}");
    assert_eq!(error(server.send("GET", "/v1/completions", "")).0, 405);
    assert_eq!(error(server.send("GET", "/nothing", "")).0, 404);
    assert_eq!(error(server.raw(b"nonsense\r\n\r\n")).0, 400);
    let chunked = b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(error(server.raw(chunked)).0, 411);
    // And it still works.
    assert_eq!(server.complete(&json!({"prompt": "a", "max_tokens": 1}))["choices"][0]["finish_reason"], "length");
    let models: Value = serde_json::from_str(&server.send("GET", "/v1/models", "").1).unwrap();
    assert_eq!(models["data"][0]["id"], "synthetic:llama-tiny");
}

/// A client's request for a long stream, of which the first piece has come.
fn long_stream(server: &Server) -> TcpStream {
    let body = json!({"prompt": "a", "max_tokens": 4000, "temperature": 0, "stream": true}).to_string();
    let mut stream = server.connect();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    stream
}

#[test]
fn work_of_a_client_that_went_away_is_cancelled() {
    let server = Server::start(&["--queue", "0", "--batch", "2"]);
    let clients = [long_stream(&server), long_stream(&server)];
    drop(clients);
    server.wait_until_cancelled();
    // The places are free again.
    let body = json!({"prompt": ["a", "b"], "max_tokens": 1});
    assert_eq!(server.complete(&body)["choices"].as_array().unwrap().len(), 2);
}

#[cfg(unix)]
#[test]
fn it_ends_in_order() {
    for signal in ["-INT", "-TERM"] {
        let mut server = Server::start(&["--grace", "3600"]);
        let mut client = long_stream(&server);
        server.signal(signal);
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("data: [DONE]") && rest.contains("\"finish_reason\":\"length\""), "{rest}");
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        assert!(TcpStream::connect(&server.address).is_err());
    }
}

#[test]
fn an_evaluation_through_the_server_gives_the_same_items() {
    let server = Server::start(&[]);
    let tokenizer = server.folder.path().join("tokenizer.json");
    let tasks = "piqa,gsm8k_zeroshot,datasets/tasks/examples/mmlu_style.toml,datasets/tasks/examples/arithmetic.toml";
    let eval = |out: &str, extra: &[&str]| {
        let out = server.folder.path().join(out);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ternbench"));
        command.current_dir(root()).args(["eval", "--task", tasks, "--limit", "8", "--max-new-tokens", "20"]);
        command.arg("--tokenizer").arg(&tokenizer).arg("--out").arg(&out).args(extra).env_remove("TERNBENCH_DATA");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ["piqa", "gsm8k_zeroshot", "mmlu_style", "arithmetic"].map(|task| {
            let text = std::fs::read_to_string(out.join(format!("items-{task}.jsonl"))).unwrap();
            let items = text.lines().map(|line| {
                let mut item: Value = serde_json::from_str(line).unwrap();
                let kernel = item.as_object_mut().unwrap().remove("kernel").unwrap();
                assert_eq!(kernel.as_str().unwrap().contains(" via http://"), extra[0] == "--via");
                item
            });
            items.collect::<Vec<_>>()
        })
    };
    let url = format!("http://{}", server.address);
    assert_eq!(eval("via", &["--via", &url]), eval("own", &["-m", "synthetic:llama-tiny", "-t", "2"]));
    let none = Command::new(env!("CARGO_BIN_EXE_ternbench")).args(["eval", "--via", "https://a"]).output().unwrap();
    let stderr = String::from_utf8(none.stderr).unwrap();
    assert!(none.status.code() == Some(1) && stderr.contains("https is not spoken"), "{stderr}");
}
