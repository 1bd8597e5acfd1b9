//! `/v1/…`: OpenAI's API over [`Service`].
//!
//! The time until an answer begins is the queue's and the model's; only the request's body must come
//! at once. A client that goes away drops the channel of its answer, which ends that.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::token;
use crate::serve::{Asked, Choice, DONE, Face, Form, Offer, Refusal, Said, Service, Usage, event};

/// A conversation of the longest context, with room to spare.
const MOST_BODY_BYTES: usize = 8 << 20;
/// A body that is too long is read so far and let go: a client that still writes while its
/// connection is closed never sees why.
const MOST_BYTES_READ: usize = 8 * MOST_BODY_BYTES;

/// Whether a path is answered here.
pub(super) fn is_one(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// What the answers are made from.
pub(super) struct V1 {
    pub(super) service: Arc<Service>,
    /// How long the body of a request may take.
    pub(super) patience: Duration,
}

type App = State<Arc<V1>>;

/// The paths, to be merged into a router of any state.
pub(super) fn router<S: Clone + Send + Sync + 'static>(v1: V1) -> Router<S> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/{*path}", any(nothing))
        .method_not_allowed_fallback(nothing)
        .with_state(Arc::new(v1))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

async fn nothing(request: Request) -> Refusal {
    let message = format!("Unknown request: {} {}", request.method(), request.uri().path());
    Refusal { status: 404, ..Refusal::invalid(None, message) }
}

/// The model that is served, asked for on a thread that may wait.
async fn offer(v1: &Arc<V1>) -> Result<Offer, Refusal> {
    let service = Arc::clone(&v1.service);
    let offer = tokio::task::spawn_blocking(move || service.offer()).await;
    offer.map_err(|_| Refusal::defect())?
}

/// `GET /v1/models`.
async fn models(State(v1): App) -> Result<Response, Refusal> {
    let listed = offer(&v1).await?.listed();
    Ok(Json(json!({ "object": "list", "data": [listed] })).into_response())
}

/// `GET /v1/models/{id}`.
async fn model(State(v1): App, Path(id): Path<String>) -> Result<Response, Refusal> {
    let offer = offer(&v1).await?;
    if !offer.is_meant_by(Some(&id)) {
        return Err(Refusal::no_such_model(&id, &offer.name));
    }
    Ok(Json(offer.listed()).into_response())
}

/// `POST /v1/chat/completions`.
async fn chat(State(v1): App, headers: HeaderMap, request: Request) -> Result<Response, Refusal> {
    answer(&v1, Face::Chat, &headers, request).await
}

/// `POST /v1/completions`.
async fn completions(
    State(v1): App,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    answer(&v1, Face::Completion, &headers, request).await
}

async fn answer(
    v1: &Arc<V1>,
    face: Face,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    let body = body(v1, headers, request).await?;
    let random = token::random_word().map_err(|_| Refusal::defect())?;
    let asked = Asked::parse(face, &body, random)?;
    let (stream, include_usage) = (asked.stream, asked.include_usage);
    let (rows, mut said) = (asked.rows(), v1.service.ask(asked)?);
    let (model, prompt_tokens) = match said.recv().await {
        Some(Said::Begun { model, prompt_tokens }) => (model, prompt_tokens),
        Some(Said::Refused(refusal)) => return Err(refusal),
        _ => return Err(Refusal::defect()),
    };
    let id = match face {
        Face::Chat => format!("chatcmpl-{random:016x}"),
        Face::Completion => format!("cmpl-{random:016x}"),
    };
    let form = Form { face, id, created: jiff::Timestamp::now().as_second(), model };
    let usage = Usage { prompt_tokens, completion_tokens: 0 };
    if stream {
        let stream = Stream { form, said, usage, include_usage, open: rows, begins: true };
        return Ok(stream.respond(rows));
    }
    whole(&form, &mut said, usage, rows).await
}

/// The body, which must be JSON: no form of another site can send that type without asking first.
async fn body(v1: &Arc<V1>, headers: &HeaderMap, request: Request) -> Result<Bytes, Refusal> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim() != "application/json" {
        let message = "the body must be JSON: send `Content-Type: application/json`";
        return Err(Refusal { status: 415, ..Refusal::invalid(None, message) });
    }
    tokio::time::timeout(v1.patience, read(request.into_body())).await.unwrap_or_else(|_| {
        let message = "the request took too long: send its body at once";
        Err(Refusal { status: 408, ..Refusal::invalid(None, message) })
    })
}

/// All of a body that is not too long.
async fn read(body: Body) -> Result<Bytes, Refusal> {
    let (mut held, mut sent) = (Vec::new(), 0);
    let mut parts = body.into_data_stream();
    while sent <= MOST_BYTES_READ
        && let Some(part) = parts.next().await
    {
        let part = part
            .map_err(|error| Refusal::invalid(None, format!("the body cannot be read: {error}")))?;
        sent += part.len();
        if sent <= MOST_BODY_BYTES {
            held.extend_from_slice(&part);
        } else {
            held = Vec::new();
        }
    }
    if sent > MOST_BODY_BYTES {
        let message = format!("the body is longer than {MOST_BODY_BYTES} bytes");
        return Err(Refusal { status: 413, ..Refusal::invalid(None, message) });
    }
    Ok(held.into())
}

/// Waits for all choices to end.
async fn whole(
    form: &Form,
    said: &mut UnboundedReceiver<Said>,
    mut usage: Usage,
    rows: usize,
) -> Result<Response, Refusal> {
    let mut choices = vec![Choice::default(); rows];
    while choices.iter().any(|choice| choice.finish.is_none()) {
        match said.recv().await {
            Some(Said::Text { choice, text }) => choices[choice].text.push_str(&text),
            Some(Said::Ended { choice, finish, tokens }) => {
                choices[choice].finish = Some(finish);
                usage.completion_tokens += tokens;
            }
            Some(Said::Refused(refusal)) => return Err(refusal),
            Some(Said::Begun { .. }) => {}
            None => return Err(Refusal::defect()),
        }
    }
    Ok(Json(form.whole(&choices, usage)).into_response())
}

/// An answer on its way in chunks.
struct Stream {
    form: Form,
    said: UnboundedReceiver<Said>,
    usage: Usage,
    include_usage: bool,
    /// Choices that have not ended.
    open: usize,
    begins: bool,
}

impl Stream {
    fn respond(self, rows: usize) -> Response {
        let chunks = unfold(self, move |mut stream| async move {
            let chunk = stream.next_chunk(rows).await?;
            Some((Ok::<_, Infallible>(Bytes::from(chunk)), stream))
        });
        ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(chunks)).into_response()
    }

    /// What there is to say next; nothing after the end.
    async fn next_chunk(&mut self, rows: usize) -> Option<String> {
        if std::mem::take(&mut self.begins) {
            let roles: String =
                (0..rows).filter_map(|row| self.form.role(row)).map(|role| event(&role)).collect();
            if !roles.is_empty() {
                return Some(roles);
            }
        }
        if self.open == 0 {
            return None;
        }
        match self.said.recv().await {
            Some(Said::Text { choice, text }) => Some(event(&self.form.delta(choice, &text))),
            Some(Said::Ended { choice, finish, tokens }) => {
                self.usage.completion_tokens += tokens;
                self.open -= 1;
                let mut text = event(&self.form.finish(choice, finish));
                if self.open == 0 {
                    if self.include_usage {
                        text.push_str(&event(&self.form.usage(self.usage)));
                    }
                    text.push_str(DONE);
                }
                Some(text)
            }
            Some(Said::Refused(refusal)) => Some(self.give_up(&refusal)),
            Some(Said::Begun { .. }) => Some(String::new()),
            None => Some(self.give_up(&Refusal::defect())),
        }
    }

    /// The status was sent long ago: the error is the last that is said.
    fn give_up(&mut self, refusal: &Refusal) -> String {
        self.open = 0;
        event(&refusal.body())
    }
}
