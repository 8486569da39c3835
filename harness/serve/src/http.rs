//! HTTP/1.1 on a socket: reading requests within limits, writing responses whole or in chunks. The head is parsed by `httparse`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::ApiError;

/// Most bytes of a request line and headers.
const MAX_HEAD: usize = 16 << 10;
/// Most headers.
const MAX_HEADERS: usize = 64;
/// For how long a client may take to send a request it has begun.
const READ_TIME: Duration = Duration::from_secs(30);
/// For how long a client may not take what is written to it.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// How often a wait looks up.
pub const TICK: Duration = Duration::from_millis(50);

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`.
    pub method: String,
    /// The path without what follows a `?`.
    pub path: String,
    /// The body.
    pub body: Vec<u8>,
}

/// What comes of waiting for a request.
#[derive(Debug)]
pub enum Incoming {
    /// A request.
    Request(Request),
    /// There will be none: the client is gone, or the server stops.
    End,
    /// What came cannot be answered but with this; the connection ends.
    Bad(ApiError),
}

/// A client.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    keep_alive: bool,
    http_11: bool,
}

impl Connection {
    /// Takes a client.
    ///
    /// # Errors
    /// When the system refuses its timeouts.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(WRITE_TIME))?;
        Ok(Self { stream, buffer: Vec::new(), keep_alive: false, http_11: true })
    }

    /// Whether another request may follow.
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    /// The next request, with at most `max_body` bytes. Ends early once `stopping` says so, but not within a request.
    pub fn read(&mut self, max_body: usize, stopping: &dyn Fn() -> bool) -> Incoming {
        self.keep_alive = false;
        let mut since = Instant::now();
        let (head, head_len) = loop {
            match Head::parse(&self.buffer) {
                Ok(Some(head)) => break head,
                Ok(None) if self.buffer.len() > MAX_HEAD => {
                    return Incoming::Bad(ApiError::new(431, format!("the headers exceed {MAX_HEAD} bytes")));
                }
                Ok(None) => {}
                Err(error) => return Incoming::Bad(error),
            }
            if self.buffer.is_empty() {
                since = Instant::now();
                if stopping() {
                    return Incoming::End;
                }
            }
            match self.more(since) {
                Ok(true) => {}
                Ok(false) => return Incoming::End,
                Err(error) => return Incoming::Bad(error),
            }
        };
        self.http_11 = head.http_11;
        if head.body_len > max_body {
            let reason = format!("the body has {} bytes, at most {max_body} are read", head.body_len);
            return Incoming::Bad(ApiError::new(413, reason));
        }
        if head.expects_continue && self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return Incoming::End;
        }
        let end = head_len.saturating_add(head.body_len);
        while self.buffer.len() < end {
            match self.more(since) {
                Ok(true) => {}
                Ok(false) => return Incoming::End,
                Err(error) => return Incoming::Bad(error),
            }
        }
        let body = self.buffer[head_len..end].to_vec();
        self.buffer.drain(..end);
        self.keep_alive = head.keep_alive;
        Incoming::Request(Request { method: head.method, path: head.path, body })
    }

    /// Reads what has come. False when nothing will any more.
    fn more(&mut self, since: Instant) -> Result<bool, ApiError> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                Ok(true)
            }
            Err(error) if is_wait(&error) && since.elapsed() < READ_TIME => Ok(true),
            Err(error) if is_wait(&error) => {
                Err(ApiError::new(408, format!("the request was not complete after {} s", READ_TIME.as_secs())))
            }
            Err(_) => Ok(false),
        }
    }

    /// Whether the client has closed its side: it will not read what is written. Never waits.
    pub fn is_gone(&self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return true;
        }
        let gone = match self.stream.peek(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => !is_wait(&error),
        };
        self.stream.set_nonblocking(false).is_err() || gone
    }

    /// Writes a whole response.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn respond(&mut self, status: u16, body: &Value) -> io::Result<()> {
        let body = body.to_string() + "\n";
        let mut head = self.head(status, "application/json");
        if status == 405 {
            head += "Allow: GET, POST\r\n";
        }
        if matches!(status, 429 | 503) {
            head += "Retry-After: 1\r\n";
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        self.stream.write_all((head + &body).as_bytes())
    }

    /// Begins a stream of events.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn begin_events(&mut self) -> io::Result<()> {
        // HTTP/1.0 knows no chunks: there the end of the connection ends the stream.
        self.keep_alive &= self.http_11;
        let mut head = self.head(200, "text/event-stream");
        head += "Cache-Control: no-cache\r\n";
        if self.http_11 {
            head += "Transfer-Encoding: chunked\r\n";
        }
        self.stream.write_all((head + "\r\n").as_bytes())
    }

    /// Writes an event; `[DONE]` ends the stream.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn event(&mut self, data: &str) -> io::Result<()> {
        let event = format!("data: {data}\n\n");
        if !self.http_11 {
            return self.stream.write_all(event.as_bytes());
        }
        let end = if data == "[DONE]" { "0\r\n\r\n" } else { "" };
        self.stream.write_all(format!("{:x}\r\n{event}\r\n{end}", event.len()).as_bytes())
    }

    fn head(&self, status: u16, content_type: &str) -> String {
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let reason = reason(status);
        format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nConnection: {connection}\r\n")
    }

    /// Ends the connection so that a client which is still sending gets to read the response.
    pub fn close(mut self) {
        if self.stream.shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let start = Instant::now();
        let mut bytes = [0; 16 << 10];
        while start.elapsed() < Duration::from_secs(2) {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Err(error) if !is_wait(&error) => return,
                _ => {}
            }
        }
    }
}

/// Whether nothing has come yet, and no more than that.
fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// What the head of a request says.
#[derive(Debug)]
struct Head {
    method: String,
    path: String,
    http_11: bool,
    body_len: usize,
    keep_alive: bool,
    expects_continue: bool,
}

impl Head {
    /// The head at the start of `bytes` and its length; nothing while it is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, ApiError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let len = match request.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(ApiError::new(400, format!("not an HTTP request: {error}"))),
        };
        let http_11 = request.version == Some(1);
        let path = request.path.unwrap_or("/");
        let mut head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            path: path.split('?').next().unwrap_or(path).to_owned(),
            http_11,
            body_len: 0,
            keep_alive: http_11,
            expects_continue: false,
        };
        let mut length: Option<usize> = None;
        for header in request.headers.iter() {
            let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                    let parsed = value.parse().ok().filter(|parsed| digits && length.is_none_or(|old| old == *parsed));
                    length = Some(parsed.ok_or_else(|| ApiError::new(400, "Content-Length is not one number"))?);
                }
                "transfer-encoding" => {
                    return Err(ApiError::new(411, "a body needs a Content-Length: chunks are not read"));
                }
                "connection" if value.eq_ignore_ascii_case("close") => head.keep_alive = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => head.keep_alive = true,
                "expect" => head.expects_continue = value.eq_ignore_ascii_case("100-continue"),
                _ => {}
            }
        }
        head.body_len = length.unwrap_or(0);
        Ok(Some((head, len)))
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_and_bad_ones_named() {
        let text = b"POST /v1/completions?a=1 HTTP/1.1\r\ncontent-length: 12\r\nExpect: 100-Continue\r\n\r\n{}";
        let (head, len) = Head::parse(text).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str(), head.body_len), ("POST", "/v1/completions", 12));
        assert!(head.keep_alive && head.expects_continue && len == text.len() - 2);
        assert!(Head::parse(&text[..40]).unwrap().is_none());
        let status = |headers: &str| {
            let text = format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n");
            Head::parse(text.as_bytes()).unwrap_err().status
        };
        assert_eq!(status("Transfer-Encoding: chunked"), 411);
        assert_eq!(status("Content-Length: -1"), 400);
        assert_eq!(status("Content-Length: +1"), 400);
        assert_eq!(status("Content-Length: 1\r\nContent-Length: 2"), 400);
        assert_eq!(Head::parse(b"nonsense\r\n\r\n").unwrap_err().status, 400);
        let (head, _) = Head::parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert!(!head.keep_alive && !head.http_11);
    }
}
