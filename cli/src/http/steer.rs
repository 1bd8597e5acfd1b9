//! What can be asked of the daemon: the same as over the control socket.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::reply::Refusal;
use super::routes::App;
use crate::control::{Request, Response};
use crate::priority::Priority;

/// What was done, in a sentence.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    message: String,
}

type Answer = Result<Json<Done>, Refusal>;
type Body = Result<Bytes, BytesRejection>;

/// No more than that it is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A job, or the one that is being worked on.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyJob {
    job: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneJob {
    job: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobAndPriority {
    job: i64,
    priority: Priority,
}

macro_rules! plain {
    ($($(#[doc = $doc:literal])* $name:ident => $request:expr;)+) => {
        $(
            $(#[doc = $doc])*
            pub(super) async fn $name(
                State(app): State<Arc<App>>,
                headers: HeaderMap,
                body: Body,
            ) -> Answer {
                let Nothing {} = parse_or_default(&headers, body)?;
                do_it(&app, $request).await
            }
        )+
    };
}

plain! {
    /// `POST /api/pause`.
    pause => Request::Pause;
    /// `POST /api/resume`.
    resume => Request::Resume;
    /// `POST /api/stop`.
    stop => Request::Stop;
    /// `POST /api/eval-now`.
    eval_now => Request::EvalNow;
}

/// `POST /api/skip`.
pub(super) async fn skip(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Answer {
    let AnyJob { job } = parse_or_default(&headers, body)?;
    do_it(&app, Request::Skip { job }).await
}

/// `POST /api/retry`.
pub(super) async fn retry(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Answer {
    let OneJob { job } = parse(&headers, &body?)?;
    do_it(&app, Request::Retry { job }).await
}

/// `POST /api/priority`.
pub(super) async fn priority(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let JobAndPriority { job, priority } = parse(&headers, &body?)?;
    do_it(&app, Request::Priority { job, priority }).await
}

async fn do_it(app: &Arc<App>, request: Request) -> Answer {
    match app.ask(request).await? {
        Response::Done { message } => Ok(Json(Done { message })),
        Response::Refused { error, hint } => {
            Err(Refusal { status: StatusCode::CONFLICT, error, hint })
        }
        Response::Status(_) => Ok(Json(Done { message: "done".to_owned() })),
    }
}

fn parse_or_default<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Refusal> {
    let body = body?;
    if body.is_empty() {
        check_type(headers)?;
        return Ok(T::default());
    }
    parse(headers, &body)
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Refusal> {
    check_type(headers)?;
    serde_json::from_slice(body).map_err(|error| Refusal {
        status: StatusCode::BAD_REQUEST,
        error: format!("the body is not understood: {error}"),
        hint: Some("for example {\"job\": 3}".to_owned()),
    })
}

/// No form of another site can send this type without asking first.
fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if given.split(';').next().unwrap_or_default().trim() == "application/json" {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "the body must be JSON",
        "send `Content-Type: application/json`",
    ))
}

impl From<BytesRejection> for Refusal {
    fn from(rejection: BytesRejection) -> Self {
        Self { status: rejection.status(), error: rejection.body_text(), hint: None }
    }
}
