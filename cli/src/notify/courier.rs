//! One request, and what its answer means.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};

use super::message::Body;
use super::schedule::asked_wait;
use super::signature::signature;
use crate::config::Webhook;
use crate::failure::said_once;
use crate::visible::visible_line;

/// For a connection, and for all of a request.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);
/// Of an answer that is no success, so many characters are repeated.
const ANSWER_CHARS: usize = 120;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was taken.
    Delivered(StatusCode),
    /// It may be taken another time.
    Later {
        why: String,
        /// What the receiver asked for.
        wait: Option<Duration>,
        /// Whether others to the same receiver would fare no better.
        all: bool,
    },
    /// It will not be taken.
    Never { why: String },
}

/// A client that follows nobody anywhere and waits for nobody long.
pub(super) fn client() -> reqwest::Result<Client> {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_PATIENCE)
        .timeout(PATIENCE)
        .user_agent(concat!("chandler/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Sends one body to one webhook.
pub(super) async fn send(client: &Client, hook: &Webhook, key: &str, body: Body) -> Verdict {
    let mut request = client
        .post(hook.url.reveal())
        .header(CONTENT_TYPE, body.content_type)
        .header("X-Chandler-Delivery", key);
    for (name, value) in body.headers {
        request = request.header(name, value);
    }
    if let Some(secret) = &hook.secret {
        let signed = signature(secret.reveal().as_bytes(), body.text.as_bytes());
        request = request.header("X-Chandler-Signature-256", signed);
    }
    match request.body(body.text).send().await {
        Ok(response) => verdict(response).await,
        // Its address is not for the log.
        Err(error) => {
            let never = error.is_builder();
            let why = said_once(&error.without_url()).join(": ");
            if never {
                Verdict::Never { why }
            } else {
                Verdict::Later { why, wait: None, all: true }
            }
        }
    }
}

async fn verdict(mut response: Response) -> Verdict {
    let status = response.status();
    if status.is_success() {
        return Verdict::Delivered(status);
    }
    if status.is_redirection() {
        return Verdict::Never { why: format!("{status}, and redirects are not followed") };
    }
    let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait = header.and_then(|header| asked_wait(header, Timestamp::now()));
    let answer = response.chunk().await.ok().flatten().unwrap_or_default();
    let answer: String = String::from_utf8_lossy(&answer).chars().take(ANSWER_CHARS).collect();
    let answer = visible_line(answer.trim());
    let why = if answer.is_empty() { status.to_string() } else { format!("{status}: {answer}") };
    let passes =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    if status.is_server_error() || passes.contains(&status) {
        let all = wait.is_some() || status == StatusCode::TOO_MANY_REQUESTS;
        return Verdict::Later { why, wait, all };
    }
    Verdict::Never { why }
}
