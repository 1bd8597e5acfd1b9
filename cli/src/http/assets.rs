//! The page: files that are part of the program, by their exact path.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::reply::Refusal;

struct Asset {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($path:literal: $file:literal as $kind:literal,)+) => {
        &[$(Asset { path: $path, kind: $kind, bytes: include_bytes!(concat!("assets/", $file)) },)+]
    };
}

/// Everything there is: no path leads to a file of the machine.
const ASSETS: &[Asset] = assets![
    "/": "index.html" as "text/html; charset=utf-8",
    "/app.js": "app.js" as "text/javascript; charset=utf-8",
    "/style.css": "style.css" as "text/css; charset=utf-8",
    "/icon.svg": "icon.svg" as "image/svg+xml",
    "/uplot/uPlot.iife.min.js": "uplot/uPlot.iife.min.js" as "text/javascript; charset=utf-8",
    "/uplot/uPlot.min.css": "uplot/uPlot.min.css" as "text/css; charset=utf-8",
];

static ETAGS: LazyLock<Vec<String>> =
    LazyLock::new(|| ASSETS.iter().map(|asset| etag(asset.bytes)).collect());

fn etag(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// Whether there is a file at this path.
pub(super) fn is_one(path: &str) -> bool {
    ASSETS.iter().any(|asset| asset.path == path)
}

pub(super) async fn asset(uri: Uri, headers: HeaderMap) -> Result<Response, Refusal> {
    let path = uri.path();
    let Some(place) = ASSETS.iter().position(|asset| asset.path == path) else {
        return Err(Refusal::not_found(format!("there is nothing at {path}")));
    };
    let (asset, etag) = (&ASSETS[place], ETAGS[place].as_str());
    let kept = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A browser asks each time, and is told that what it has is still right.
    let caching = [(ETAG, etag), (CACHE_CONTROL, "no-cache")];
    if kept.split(',').any(|kept| kept.trim().trim_start_matches("W/") == etag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    Ok((caching, [(CONTENT_TYPE, asset.kind)], asset.bytes).into_response())
}

/// What is shown to who comes without the token.
pub(super) fn sign_in_page() -> Response {
    let page = include_str!("assets/sign-in.html");
    (StatusCode::UNAUTHORIZED, [(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_nothing_inline() {
        let texts = ASSETS.iter().filter(|asset| asset.kind.starts_with("text/html"));
        let pages = texts.map(|asset| String::from_utf8_lossy(asset.bytes).into_owned());
        for page in pages.chain([include_str!("assets/sign-in.html").to_owned()]) {
            for inline in ["<style", " style=", " onclick=", " onload=", "javascript:", "http:"] {
                assert!(!page.contains(inline), "{inline}");
            }
            let scripts = page.matches("<script").count();
            assert_eq!(scripts, page.matches("<script src=\"/").count());
        }
    }
}
