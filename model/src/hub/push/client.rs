//! Requests to the hub, and what its refusals mean.

use std::time::Duration;

use reqwest::blocking::{Client as Http, RequestBuilder, Response};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::Value;

use super::token::token;
use super::{PushError, PushOptions};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For an answer to a small request; an upload takes as long as it takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const DEFAULT_RETRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Of the hub's words in an error.
const SAID_CHARS: usize = 300;

/// Speaks to one hub, about one repository, for one user.
pub(super) struct Client {
    id: String,
    http: Http,
    endpoint: String,
    token: String,
    retries: u32,
}

impl Client {
    pub(super) fn new(id: &str, options: &PushOptions) -> Result<Self, PushError> {
        let token = options.token.clone().or_else(token).ok_or(PushError::NoToken)?;
        let configured = || std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty());
        let endpoint = options.endpoint.clone().or_else(configured);
        let endpoint = endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/');
        let http = Http::builder()
            .user_agent(concat!("chandler/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(None)
            .build()
            .map_err(|error| PushError::Unreachable { id: id.to_owned(), source: error.into() })?;
        Ok(Self {
            id: id.to_owned(),
            http,
            endpoint: endpoint.to_owned(),
            token,
            retries: options.max_retries.unwrap_or(DEFAULT_RETRIES),
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn head(&self, path: &str) -> Result<(), PushError> {
        let url = format!("{}{path}", self.endpoint);
        self.try_often(|| Ok(self.of_user(self.http.head(&url)))).map(drop)
    }

    pub(super) fn get_json(&self, path: &str) -> Result<Value, PushError> {
        let url = format!("{}{path}", self.endpoint);
        self.json(self.try_often(|| Ok(self.of_user(self.http.get(&url))))?)
    }

    pub(super) fn post_json(&self, path: &str, body: &Value) -> Result<Value, PushError> {
        let url = format!("{}{path}", self.endpoint);
        self.json(self.try_often(|| Ok(self.of_user(self.http.post(&url).json(body))))?)
    }

    /// One JSON value a line, as a commit is told.
    pub(super) fn post_lines(&self, path: &str, lines: &[Value]) -> Result<Value, PushError> {
        let url = format!("{}{path}", self.endpoint);
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let request = || {
            let request = self.http.post(&url).header(CONTENT_TYPE, "application/x-ndjson");
            Ok(self.of_user(request.body(body.clone())))
        };
        self.json(self.try_often(request)?)
    }

    /// A request of the LFS protocol, to `url`; with the token where that is the hub itself.
    pub(super) fn post_lfs(&self, url: &str, body: &Value) -> Result<Value, PushError> {
        const LFS: HeaderValue = HeaderValue::from_static("application/vnd.git-lfs+json");
        let headers: HeaderMap =
            [(reqwest::header::ACCEPT, LFS), (CONTENT_TYPE, LFS)].into_iter().collect();
        let body = body.to_string();
        let is_hub = url.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'));
        let response = self.try_often(|| {
            let request = self.http.post(url).headers(headers.clone()).body(body.clone());
            let request = request.timeout(ANSWER_TIMEOUT);
            Ok(if is_hub { request.bearer_auth(&self.token) } else { request })
        })?;
        let text = response.text().map_err(|error| self.unreachable(error))?;
        // A hub that has nothing more to say may say nothing.
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Sends bytes to where the hub said. The address is a permission in itself: no token goes there.
    pub(super) fn put(
        &self,
        url: &str,
        headers: &HeaderMap,
        body: impl Fn() -> Result<reqwest::blocking::Body, PushError>,
    ) -> Result<Response, PushError> {
        self.try_often(|| Ok(self.http.put(url).headers(headers.clone()).body(body()?)))
    }

    fn of_user(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(&self.token).timeout(ANSWER_TIMEOUT)
    }

    /// Sends a request, again where what went wrong may pass: twice the wait each time.
    fn try_often(
        &self,
        request: impl Fn() -> Result<RequestBuilder, PushError>,
    ) -> Result<Response, PushError> {
        let mut wait = FIRST_WAIT;
        for left in (0..=self.retries).rev() {
            let sent = request()?.send();
            let may_pass = match &sent {
                Ok(response) => {
                    response.status().is_server_error() || response.status().as_u16() == 429
                }
                Err(_) => true,
            };
            if left == 0 || !may_pass {
                return sent.map_err(|error| self.unreachable(error)).and_then(|r| self.good(r));
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        unreachable!("the last try returns")
    }

    fn good(&self, response: Response) -> Result<Response, PushError> {
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(response);
        }
        let id = self.id.clone();
        let told = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let told = told("x-error-message");
        let said = told.unwrap_or_else(|| {
            let text = response.text().unwrap_or_default();
            let json: Option<Value> = serde_json::from_str(&text).ok();
            let words = json.and_then(|json| {
                let words = json.get("error").or_else(|| json.get("message"))?;
                Some(words.as_str()?.to_owned())
            });
            words.unwrap_or(text)
        });
        let said = said.chars().take(SAID_CHARS).collect();
        Err(match status {
            401 => PushError::UnknownToken,
            403 => PushError::Forbidden { id, said },
            404 => PushError::NotFound { id },
            status => PushError::Answered { id, status, said },
        })
    }

    fn json(&self, response: Response) -> Result<Value, PushError> {
        let text = response.text().map_err(|error| self.unreachable(error))?;
        serde_json::from_str(&text).map_err(|error| self.not_understood(error.to_string()))
    }

    pub(super) fn not_understood(&self, reason: impl Into<String>) -> PushError {
        PushError::BadAnswer { id: self.id.clone(), reason: reason.into() }
    }

    pub(super) fn unreachable(&self, error: reqwest::Error) -> PushError {
        // Addresses of uploads are permissions.
        let source = error.without_url().into();
        PushError::Unreachable { id: self.id.clone(), source }
    }
}
