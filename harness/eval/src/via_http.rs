//! As much of an HTTP/1.1 client as asking a completions server takes. Response heads are parsed by `httparse`.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

/// For how long a server may be silent: a long generation behind a long queue.
const READ_TIME: Duration = Duration::from_secs(900);
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Most bytes of a response's head and body.
const MAX_HEAD: u64 = 64 << 10;
const MAX_BODY: u64 = 256 << 20;

/// Where a server is: `http://host:port/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Host and port, as headers say them.
    pub authority: String,
    /// What comes before `/completions`.
    pub path: String,
}

impl Url {
    /// Reads a URL; `/v1` is added where it has no path.
    ///
    /// # Errors
    /// One line: what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("https://") {
            return Err(format!("{text}: https is not spoken; put a local proxy before it that speaks http"));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(format!("{text}: expected http://host:port"));
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { host.to_owned() } else { format!("{host}:80") };
        if host.is_empty() || host.starts_with(':') || rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("{text}: expected http://host:port"));
        }
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/chat/completions").or(path.strip_suffix("/completions")).unwrap_or(path);
        Ok(Self { authority, path: if path.is_empty() { "/v1".to_owned() } else { path.to_owned() } })
    }
}

/// A response.
#[derive(Debug, Default)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Seconds to wait before trying again, where the server says so.
    pub retry_after: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

/// A client that keeps its connection.
pub struct Client {
    url: Url,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    /// Not connected yet.
    pub fn new(url: Url) -> Self {
        Self { url, stream: None }
    }

    /// Sends `body` to `path` below the URL's, or asks for `path` when there is no body.
    ///
    /// # Errors
    /// When no whole response came; the connection is then given up.
    pub fn send(&mut self, path: &str, body: Option<&Value>) -> io::Result<Response> {
        let mut stream = match self.stream.take() {
            Some(stream) if is_open(stream.get_ref()) => stream,
            _ => BufReader::new(self.connect()?),
        };
        let Url { authority, path: base } = &self.url;
        let (method, body) = body.map_or(("GET", String::new()), |body| ("POST", body.to_string()));
        let request = format!(
            "{method} {base}/{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let (response, keep_alive) = read_response(&mut stream)?;
        if keep_alive {
            self.stream = Some(stream);
        }
        Ok(response)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = Error::new(ErrorKind::NotFound, "the host has no address");
        for address in self.url.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIME) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(READ_TIME))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Whether the server has not closed a connection that was idle.
fn is_open(stream: &TcpStream) -> bool {
    let waits = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok()
        && stream.peek(&mut [0]).is_err_and(waits)
        && stream.set_nonblocking(false).is_ok()
}

fn bad(reason: impl ToString) -> Error {
    Error::new(ErrorKind::InvalidData, reason.to_string())
}

/// A line without its end.
fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.by_ref().take(MAX_HEAD).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    Ok(line.trim_end().to_owned())
}

/// A response, and whether another can follow on the connection.
fn read_response(stream: &mut impl BufRead) -> io::Result<(Response, bool)> {
    let mut head = String::new();
    loop {
        let line = read_line(stream)?;
        head += &line;
        head += "\r\n";
        if line.is_empty() {
            // A server may say 100 first.
            if head.split(' ').nth(1).is_some_and(|status| status.starts_with('1')) {
                head.clear();
                continue;
            }
            break;
        }
        if head.len() as u64 > MAX_HEAD {
            return Err(bad("the response's headers are too long"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Response::new(&mut headers);
    if parsed.parse(head.as_bytes()).map_err(bad)?.is_partial() {
        return Err(bad("the response's head is not complete"));
    }
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    let mut keep_alive = parsed.version == Some(1) && header("connection").as_deref() != Some("close");
    let length = header("content-length").map(|text| text.parse::<u64>().map_err(bad)).transpose()?;
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        read_chunks(stream, &mut body)?;
    } else if let Some(length) = length {
        if length > MAX_BODY {
            return Err(bad(format!("the response has {length} bytes")));
        }
        stream.take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the response is cut off"));
        }
    } else {
        keep_alive = false;
        stream.take(MAX_BODY).read_to_end(&mut body)?;
    }
    let retry_after = header("retry-after").and_then(|text| text.parse().ok());
    Ok((Response { status: parsed.code.unwrap_or(0), retry_after, body }, keep_alive))
}

fn read_chunks(stream: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(stream)?;
        let size = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16).map_err(bad)?;
        if size == 0 {
            // Trailers, and an empty line.
            while !read_line(stream)?.is_empty() {}
            return Ok(());
        }
        if body.len() as u64 + size > MAX_BODY {
            return Err(bad("the response is too long"));
        }
        let before = body.len() as u64;
        stream.take(size).read_to_end(body)?;
        if body.len() as u64 - before != size {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the response is cut off"));
        }
        read_line(stream)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = |text| Url::parse(text).map(|url| (url.authority, url.path));
        let expected = |authority: &str, path: &str| Ok((authority.to_owned(), path.to_owned()));
        assert_eq!(url("http://a:80"), expected("a:80", "/v1"));
        assert_eq!(url("http://a/"), expected("a:80", "/v1"));
        assert_eq!(url("http://[::1]:9/api/v1/completions"), expected("[::1]:9", "/api/v1"));
        assert!(url("https://a").unwrap_err().contains("proxy"));
        assert!(url("a:80").is_err() && url("http://").is_err() && url("http://a b").is_err());
    }

    fn read(text: &str) -> io::Result<(Response, bool)> {
        read_response(&mut text.as_bytes())
    }

    #[test]
    fn bodies_end_in_three_ways() {
        let (response, keep) = read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest").unwrap();
        assert_eq!((response.status, &response.body[..], keep), (200, &b"{}"[..], true));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n";
        let (response, keep) = read(chunked).unwrap();
        assert_eq!((&response.body[..], keep), (&b"abcde"[..], true));
        let (response, keep) = read("HTTP/1.0 429 No\r\nRetry-After: 3\r\n\r\nall").unwrap();
        assert_eq!((response.status, response.retry_after, keep), (429, Some(3), false));
        assert_eq!(response.body, b"all");
        assert_eq!(
            read("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n").unwrap().0.status,
            204
        );
        for cut in [&chunked[..chunked.len() - 9], "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", "HTTP/1.1 2", ""] {
            assert_eq!(read(cut).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{cut:?}");
        }
        assert!(read("SSH-2.0-server\r\n\r\n").is_err());
    }
}
