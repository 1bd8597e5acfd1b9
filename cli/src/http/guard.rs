//! Who may ask what.
//!
//! - The Host header must name this server: a page of another site whose name was made to lead here
//!   (DNS rebinding) names itself.
//! - Whoever asks for anything but `/healthz` shows the token, in a header or as the cookie that was
//!   made from it.
//! - A browser says where a request comes from (Origin, Sec-Fetch-Site). Requests that change
//!   something must come from our own page; with the cookie alone they must also say so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::reply::Refusal;
use super::routes::App;
use super::token::Token;
use super::{HttpError, assets, v1};
use crate::serve;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Scripts, styles and everything else from here alone, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// What is allowed.
#[derive(Debug)]
pub(super) struct Guard {
    token: Token,
    address: SocketAddr,
    names: Vec<String>,
    cookie_name: String,
    has_page: bool,
    /// Whether nobody has to show the token.
    is_open: bool,
}

/// What becomes of a request.
#[derive(Debug)]
enum Verdict {
    Admit,
    /// To the page, without the token in the address and with a cookie in its place.
    SignIn,
    /// To the page that says how to sign in.
    AskForToken,
    Refuse(Refusal),
}

/// What was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Bearer,
    Cookie,
}

impl Guard {
    pub(super) fn new(token: Token, address: SocketAddr, names: &[String]) -> Self {
        let names = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let cookie_name = token.cookie_name();
        Self { token, address, names, cookie_name, has_page: true, is_open: false }
    }

    /// Of a server without a page; without a token, whoever reaches the address may ask.
    pub(super) fn without_page(
        token: Option<Token>,
        address: SocketAddr,
        names: &[String],
    ) -> Result<Self, HttpError> {
        let is_open = token.is_none();
        // One that nobody knows, for nobody.
        let token = token.map_or_else(Token::random, Ok);
        let token = token.map_err(|source| HttpError::Random { source })?;
        Ok(Self { has_page: false, is_open, ..Self::new(token, address, names) })
    }

    fn judge(&self, request: &Parts) -> Verdict {
        match self.check(request) {
            Ok(verdict) => verdict,
            Err(refusal) => Verdict::Refuse(refusal),
        }
    }

    fn check(&self, request: &Parts) -> Result<Verdict, Refusal> {
        let host = self.check_host(request)?;
        let path = request.uri.path();
        if path == "/healthz" {
            return Ok(Verdict::Admit);
        }
        let reads = matches!(request.method, Method::GET | Method::HEAD);
        let is_page = self.has_page && reads && path == "/";
        let says_where_from = check_origin(&request.headers, &host, is_page)?;
        if self.is_open {
            return Ok(Verdict::Admit);
        }
        if is_page && self.shows_token_in(request.uri.query()) {
            return Ok(Verdict::SignIn);
        }
        match self.proof(&request.headers) {
            Some(Proof::Bearer) => Ok(Verdict::Admit),
            Some(Proof::Cookie) if reads || says_where_from => Ok(Verdict::Admit),
            Some(Proof::Cookie) => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "with a cookie alone, a request must say where it comes from",
                "send the token as `Authorization: Bearer TOKEN`",
            )),
            None if is_page => Ok(Verdict::AskForToken),
            None => Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "the token is missing or wrong",
                "`chandler dashboard` prints the address with the token; scripts send \
                 `Authorization: Bearer TOKEN` with what the file `token` holds",
            )),
        }
    }

    /// The Host header, which must name this server.
    fn check_host(&self, request: &Parts) -> Result<String, Refusal> {
        let refuse = |error: String| {
            let hint = "ask by the address that `chandler dashboard` prints, or add the name to \
                        http.hosts";
            Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, error, hint))
        };
        if request.uri.authority().is_some() {
            return refuse("this is no proxy".to_owned());
        }
        let mut hosts = request.headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return refuse("a request must have one Host".to_owned());
        };
        let text = host.to_str().unwrap_or_default().to_ascii_lowercase();
        match text.parse::<Authority>() {
            Ok(authority) if !text.contains('@') && self.is_ours(authority.host()) => Ok(text),
            _ => refuse(format!("this server is not {text:?}")),
        }
    }

    fn is_ours(&self, name: &str) -> bool {
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match literal {
            // A page that was opened by an address is that address's own.
            Ok(ip) => {
                ip.is_loopback() || ip == self.address.ip() || self.address.ip().is_unspecified()
            }
            Err(_) => name == "localhost" || self.names.iter().any(|known| known == name),
        }
    }

    fn shows_token_in(&self, query: Option<&str>) -> bool {
        query
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.strip_prefix("token="))
            .any(|offered| self.token.is(offered.as_bytes()))
    }

    fn proof(&self, headers: &HeaderMap) -> Option<Proof> {
        // What else it may hold is for a proxy before us.
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|header| header.as_bytes().strip_prefix(b"Bearer "));
        if let Some(offered) = bearer {
            return self.token.is(offered).then_some(Proof::Bearer);
        }
        let shown = headers.get_all(COOKIE).iter().any(|header| {
            header.as_bytes().split(|byte| *byte == b';').any(|pair| {
                let value = pair
                    .trim_ascii()
                    .strip_prefix(self.cookie_name.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"="));
                value.is_some_and(|value| self.token.is_cookie(value))
            })
        });
        shown.then_some(Proof::Cookie)
    }

    /// Sets the cookie and leads to the page. After a link on another site a redirect would still
    /// count as coming from there, and the cookie would not be sent: our own page has to lead on.
    fn sign_in(&self, from_another_site: bool) -> Response {
        let cookie = format!(
            "{}={}; HttpOnly; SameSite=Strict; Path=/",
            self.cookie_name,
            self.token.cookie()
        );
        if from_another_site {
            let refresh = (HeaderName::from_static("refresh"), "0; url=/".to_owned());
            return (StatusCode::OK, [refresh, (SET_COOKIE, cookie)]).into_response();
        }
        (StatusCode::SEE_OTHER, [(LOCATION, "/".to_owned()), (SET_COOKIE, cookie)]).into_response()
    }
}

/// Whether the request says that it comes from our own page; refused if it comes from another. The
/// page itself may be opened from anywhere.
fn check_origin(headers: &HeaderMap, host: &str, is_page: bool) -> Result<bool, Refusal> {
    let mut says = false;
    let mut foreign = false;
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        match site.as_bytes() {
            b"same-origin" => says = true,
            b"none" => {}
            _ => foreign |= !is_page,
        }
    }
    if let Some(origin) = headers.get(ORIGIN) {
        let name = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let scheme_less = name.strip_prefix("http://").or_else(|| name.strip_prefix("https://"));
        if scheme_less == Some(host) {
            says = true;
        } else {
            foreign = true;
        }
    }
    if foreign {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "the request comes from a page of another site",
            "open this server's own page",
        ));
    }
    Ok(says)
}

fn is_from_another_site(headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    site.is_some_and(|site| !matches!(site, b"none" | b"same-origin"))
}

/// Stands before everything.
pub(super) async fn stand(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    admit(&app.guard, app.limits.answer_patience, request, next).await
}

/// Lets a request through or not. An answer must begin within `patience`, where it is not an answer
/// of the model.
pub(super) async fn admit(
    guard: &Guard,
    patience: Duration,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let (is_v1, is_api) = (v1::is_one(path), path != "/" && !assets::is_one(path));
    let verdict = guard.judge(&parts);
    let mut response = match verdict {
        Verdict::Refuse(refusal) if is_v1 => in_v1_form(refusal).into_response(),
        Verdict::Refuse(refusal) => refusal.into_response(),
        Verdict::SignIn => guard.sign_in(is_from_another_site(&parts.headers)),
        Verdict::AskForToken => assets::sign_in_page(),
        Verdict::Admit => {
            let answer = next.run(Request::from_parts(parts, body));
            let patience = if is_v1 { Duration::MAX } else { patience };
            match tokio::time::timeout(patience, answer).await {
                Ok(response) => response,
                Err(_) => Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request took too long",
                    "send its body at once, or try again when the machine is less busy",
                )
                .into_response(),
            }
        }
    };
    protect(&mut response, is_api);
    response
}

/// A refusal as clients of OpenAI's API read it.
fn in_v1_form(refusal: Refusal) -> serve::Refusal {
    if refusal.status == StatusCode::UNAUTHORIZED {
        return serve::Refusal::no_token();
    }
    let hint = refusal.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
    let status = refusal.status.as_u16();
    serve::Refusal { status, ..serve::Refusal::invalid(None, refusal.error + &hint) }
}

/// Headers that every answer has.
fn protect(response: &mut Response, is_api: bool) {
    let is_unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    let fixed = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_api || !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if is_unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::token;

    fn guard(address: &str, names: &[&str]) -> (tempfile::TempDir, Guard) {
        let folder = tempfile::tempdir().unwrap();
        let token = token::make_or_read(&folder.path().join("token")).unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let guard = Guard::new(token, address.parse().unwrap(), &names);
        (folder, guard)
    }

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).unwrap().into_parts().0
    }

    fn status(guard: &Guard, request: &Parts) -> u16 {
        match guard.judge(request) {
            Verdict::Admit => 200,
            Verdict::SignIn => 303,
            Verdict::AskForToken => 401,
            Verdict::Refuse(refusal) => refusal.status.as_u16(),
        }
    }

    #[test]
    fn a_host_must_be_one_of_ours() {
        let cases: [(&str, &[&str], &str, bool); 13] = [
            ("127.0.0.1:1", &[], "127.0.0.1:7917", true),
            ("127.0.0.1:1", &[], "LocalHost:9000", true),
            ("127.0.0.1:1", &[], "[::1]", true),
            ("127.0.0.1:1", &[], "evil.example", false),
            ("127.0.0.1:1", &[], "evil.example:7917", false),
            ("127.0.0.1:1", &[], "127.0.0.1.evil.example", false),
            ("127.0.0.1:1", &[], "localhost@evil.example", false),
            ("127.0.0.1:1", &[], "192.168.1.5", false),
            ("192.168.1.5:1", &[], "192.168.1.5", true),
            ("0.0.0.0:1", &[], "192.168.1.5", true),
            ("0.0.0.0:1", &[], "evil.example", false),
            ("0.0.0.0:1", &["Train.Example"], "train.example:80", true),
            ("127.0.0.1:1", &[], "", false),
        ];
        for (address, names, host, ours) in cases {
            let (_folder, guard) = guard(address, names);
            let request = parts("GET", "/healthz", &[("host", host)]);
            let expected = if ours { 200 } else { 421 };
            assert_eq!(status(&guard, &request), expected, "{host} at {address}");
        }
        let (_folder, guard) = guard("127.0.0.1:1", &[]);
        assert_eq!(status(&guard, &parts("GET", "/healthz", &[])), 421);
        let two = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(status(&guard, &parts("GET", "/healthz", &two)), 421);
        let as_proxy = parts("GET", "http://localhost/healthz", &two[..1]);
        assert_eq!(status(&guard, &as_proxy), 421);
    }

    /// Method, path, headers and the answer's code.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16);

    #[test]
    fn what_changes_something_must_come_from_our_page() {
        let (_folder, guard) = guard("127.0.0.1:7917", &[]);
        let bearer = format!("Bearer {}", guard.token.as_str());
        let cookie = format!("a=b; {}={}", guard.cookie_name, guard.token.cookie());
        let host = ("host", "localhost:7917");
        let with_cookie = ("cookie", cookie.as_str());
        let with_bearer = ("authorization", bearer.as_str());
        let as_proxy = ("authorization", "Basic abc");
        let cases: [Case; 15] = [
            ("GET", "/api/status", &[with_cookie, as_proxy], 200),
            ("GET", "/api/status", &[with_bearer], 200),
            ("GET", "/api/status", &[with_cookie], 200),
            ("GET", "/api/status", &[with_cookie, ("sec-fetch-site", "cross-site")], 403),
            ("GET", "/", &[with_cookie, ("sec-fetch-site", "cross-site")], 200),
            ("GET", "/", &[], 401),
            ("POST", "/api/pause", &[with_bearer], 200),
            ("POST", "/api/pause", &[with_cookie], 403),
            ("POST", "/api/pause", &[with_cookie, ("sec-fetch-site", "same-origin")], 200),
            ("POST", "/api/pause", &[with_cookie, ("sec-fetch-site", "same-site")], 403),
            ("POST", "/api/pause", &[with_cookie, ("origin", "http://localhost:7917")], 200),
            ("POST", "/api/pause", &[with_cookie, ("origin", "http://localhost:9999")], 403),
            ("POST", "/api/pause", &[with_bearer, ("origin", "http://evil.example")], 403),
            ("POST", "/api/pause", &[with_bearer, ("origin", "null")], 403),
            ("POST", "/api/pause", &[], 401),
        ];
        for (method, uri, headers, expected) in cases {
            let headers: Vec<_> = [host].iter().chain(headers).copied().collect();
            let request = parts(method, uri, &headers);
            assert_eq!(status(&guard, &request), expected, "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn without_a_page_there_is_no_way_in_but_the_token_and_without_a_token_none_is_needed() {
        let token = Token::random().unwrap();
        let bearer = format!("Bearer {}", token.as_str());
        let address = "127.0.0.1:7918".parse().unwrap();
        let host = ("host", "localhost:7918");
        let opening = format!("/?token={}", token.as_str());
        let closed = Guard::without_page(Some(token), address, &[]).unwrap();
        let open = Guard::without_page(None, address, &[]).unwrap();
        let foreign = ("origin", "http://evil.example");
        let cases: [(Case, u16); 6] = [
            (("GET", &opening, &[host], 401), 200),
            (("GET", "/", &[host], 401), 200),
            (("POST", "/v1/chat/completions", &[host, ("authorization", &bearer)], 200), 200),
            (("POST", "/v1/chat/completions", &[host], 401), 200),
            (("POST", "/v1/chat/completions", &[host, foreign], 403), 403),
            (("POST", "/v1/chat/completions", &[("host", "evil.example")], 421), 421),
        ];
        for ((method, uri, headers, when_closed), when_open) in cases {
            let request = parts(method, uri, headers);
            let found = (status(&closed, &request), status(&open, &request));
            assert_eq!(found, (when_closed, when_open), "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn a_token_in_the_address_opens_the_page_and_nothing_else() {
        let (_folder, guard) = guard("127.0.0.1:7917", &[]);
        let token = guard.token.as_str();
        let host = [("host", "localhost")];
        for (uri, expected) in [
            (format!("/?token={token}"), 303),
            (format!("/?a=b&token={token}"), 303),
            ("/?token=".to_owned(), 401),
            (format!("/?token={token}0"), 401),
            (format!("/api/status?token={token}"), 401),
        ] {
            assert_eq!(status(&guard, &parts("GET", &uri, &host)), expected, "{uri}");
        }
        let led_on = guard.sign_in(true);
        assert_eq!(led_on.status(), StatusCode::OK);
        assert_eq!(led_on.headers()["refresh"], "0; url=/");
        let response = guard.sign_in(false);
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
        assert!(!cookie.contains(token), "the token itself is not kept");
    }
}
