//! Why a request is not answered, in the words and codes of OpenAI's API.

use chandler_vram::Bytes;
use serde_json::{Value, json};

use crate::engine::EngineError;
use crate::failure::in_one_line;
use crate::worker::{End, ReadThing, WorkerError};

/// What a client is told in place of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Of HTTP.
    pub(crate) status: u16,
    pub(crate) message: String,
    /// The class, such as `invalid_request_error`.
    pub(crate) kind: &'static str,
    /// The field that is wrong.
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which it is worth trying again.
    pub(crate) retry_after: Option<u64>,
}

/// While a job trains, it is worth trying again no sooner.
const RETRY_TRAINING: u64 = 30;

impl Refusal {
    /// A request that no server could answer.
    pub(crate) fn invalid(param: Option<&'static str>, message: impl Into<String>) -> Self {
        let message = message.into();
        let kind = "invalid_request_error";
        Self { status: 400, message, kind, param, code: None, retry_after: None }
    }

    /// Another model is asked for.
    pub(crate) fn no_such_model(asked: &str, served: &str) -> Self {
        let message = format!(
            "The model `{asked}` does not exist here. `{served}` is served, and `chandler` stands \
             for whatever is."
        );
        let (status, code) = (404, Some("model_not_found"));
        Self { status, code, ..Self::invalid(Some("model"), message) }
    }

    /// Prompt and answer are longer than the model has positions for.
    pub(crate) fn context_length(
        context: usize,
        prompt: usize,
        new: usize,
        what: &'static str,
    ) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested {} \
             tokens ({prompt} in the {what}, {new} in the completion). Please reduce the length of \
             the {what} or completion.",
            prompt.saturating_add(new)
        );
        let code = Some("context_length_exceeded");
        Self { code, ..Self::invalid(Some(what), message) }
    }

    /// Without the token, or with another one.
    pub(crate) fn no_token() -> Self {
        let message = "Incorrect API key provided: the token of this server is the API key \
                       (Authorization: Bearer TOKEN)";
        let code = Some("invalid_api_key");
        Self { status: 401, code, ..Self::invalid(None, message) }
    }

    /// As many wait as may.
    pub(crate) fn queue_full(waiting: usize) -> Self {
        Self {
            status: 429,
            message: format!("{waiting} requests wait already (serve.queue); try again later"),
            kind: "requests",
            param: None,
            code: Some("rate_limit_exceeded"),
            retry_after: Some(1),
        }
    }

    fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            status: 503,
            message: message.into(),
            kind: "server_busy",
            param: None,
            code: None,
            retry_after: Some(retry_after),
        }
    }

    /// A job has the memory.
    pub(crate) fn training() -> Self {
        let words = "the daemon is training: it answers again once no job is worked on";
        Self::busy(words, RETRY_TRAINING)
    }

    /// The answer was going on when a job was ready or the server ended.
    pub(crate) fn cut_off() -> Self {
        let words = "the answer was cut off: a job is ready for training, or the server ends";
        Self::busy(words, RETRY_TRAINING)
    }

    /// Nothing is answered any more.
    pub(crate) fn ending() -> Self {
        Self::busy("the server is ending", RETRY_TRAINING)
    }

    /// There is no model on this machine yet.
    pub(crate) fn no_model(message: impl Into<String>) -> Self {
        Self::busy(message, RETRY_TRAINING)
    }

    /// Too little memory for `what`.
    pub(crate) fn no_room(what: &str, needed: u64, room: u64) -> Self {
        let lacking = needed.saturating_sub(room);
        let message = format!(
            "{what} needs {} of memory and there are {}: {lacking} bytes are lacking; ask for \
             fewer tokens or choices, or raise memory.limit",
            Bytes(needed),
            Bytes(room)
        );
        Self { code: Some("out_of_memory"), ..Self::busy(message, 5) }
    }

    /// What went wrong within the server.
    pub(crate) fn of(error: &EngineError) -> Self {
        let message = in_one_line(error);
        match error {
            EngineError::Worker(worker) if matches!(**worker, WorkerError::Stopped) => {
                Self::cut_off()
            }
            EngineError::Worker(worker)
                if matches!(**worker, WorkerError::OtherTokenizer { .. }) =>
            {
                Self::busy(message, 1)
            }
            EngineError::Eval(error) if error.is_out_of_memory() => {
                Self { code: Some("out_of_memory"), ..Self::busy(message, 5) }
            }
            _ => Self { status: 500, kind: "server_error", ..Self::invalid(None, message) },
        }
    }

    /// Why a prompt did not become tokens; `what` names its field. What is said about a text is
    /// said to whoever sent it, and not logged.
    pub(crate) fn of_prompt(error: WorkerError, what: &'static str) -> Self {
        match &error {
            WorkerError::Ended { end: End::Killed | End::Exited { .. }, .. } => {
                Self::of(&error.into())
            }
            WorkerError::Refused { .. } | WorkerError::Ended { read: ReadThing::Prompt, .. } => {
                Self::invalid(Some(what), in_one_line(&error))
            }
            _ => Self::of(&error.into()),
        }
    }

    /// A defect.
    pub(crate) fn defect() -> Self {
        let message = "the answer failed: this is a defect of chandler, please report it";
        Self { status: 500, kind: "server_error", ..Self::invalid(None, message) }
    }

    /// `{"error": {"message", "type", "param", "code"}}`
    pub(crate) fn body(&self) -> Value {
        let Self { message, kind, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_form_of_openai() {
        let refusal = Refusal::context_length(100, 90, 20, "messages");
        assert_eq!(refusal.status, 400);
        let error = &refusal.body()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["code"], "context_length_exceeded");
        assert_eq!(error["param"], "messages");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("you requested 110 tokens (90 in the messages, 20 in"),
            "{message}"
        );
        let busy = Refusal::training();
        assert_eq!((busy.status, busy.kind), (503, "server_busy"));
        assert!(busy.retry_after.is_some() && busy.body()["error"]["param"].is_null());
        let room = Refusal::no_room("an answer", 3 << 20, 1 << 20);
        assert!(room.message.contains("2097152 bytes are lacking"), "{}", room.message);
    }
}
