//! Errors as OpenAI's clients expect them: a status and `{"error": {"message", "type", "param", "code"}}`.

use serde_json::{Value, json};

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// One line for people.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs: `context_length_exceeded` and the like.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// An error of `status`.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A field that cannot be accepted (400).
    pub fn field(param: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let param = param.into();
        Self { message: format!("'{param}': {reason}"), param: Some(param), ..Self::new(400, "") }
    }

    /// The same with a code for programs.
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// More is asked for than can wait (429).
    pub fn busy() -> Self {
        Self::new(429, "too many requests are waiting: try again later").with_code("queue_full")
    }

    /// The server is going down (503).
    pub fn shutting_down() -> Self {
        Self::new(503, "the server is shutting down").with_code("shutting_down")
    }

    /// The body of the response.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}
