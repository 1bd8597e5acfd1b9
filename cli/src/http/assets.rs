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
    "/app/answers.js": "app/answers.js" as "text/javascript; charset=utf-8",
    "/app/api.js": "app/api.js" as "text/javascript; charset=utf-8",
    "/app/bar.js": "app/bar.js" as "text/javascript; charset=utf-8",
    "/app/charts.js": "app/charts.js" as "text/javascript; charset=utf-8",
    "/app/course.js": "app/course.js" as "text/javascript; charset=utf-8",
    "/app/data.js": "app/data.js" as "text/javascript; charset=utf-8",
    "/app/diff.js": "app/diff.js" as "text/javascript; charset=utf-8",
    "/app/dom.js": "app/dom.js" as "text/javascript; charset=utf-8",
    "/app/early.js": "app/early.js" as "text/javascript; charset=utf-8",
    "/app/evals.js": "app/evals.js" as "text/javascript; charset=utf-8",
    "/app/events.js": "app/events.js" as "text/javascript; charset=utf-8",
    "/app/figures.js": "app/figures.js" as "text/javascript; charset=utf-8",
    "/app/frame.js": "app/frame.js" as "text/javascript; charset=utf-8",
    "/app/history.js": "app/history.js" as "text/javascript; charset=utf-8",
    "/app/kept.js": "app/kept.js" as "text/javascript; charset=utf-8",
    "/app/keyboard.js": "app/keyboard.js" as "text/javascript; charset=utf-8",
    "/app/layers.js": "app/layers.js" as "text/javascript; charset=utf-8",
    "/app/logs.js": "app/logs.js" as "text/javascript; charset=utf-8",
    "/app/main.js": "app/main.js" as "text/javascript; charset=utf-8",
    "/app/memory.js": "app/memory.js" as "text/javascript; charset=utf-8",
    "/app/now.js": "app/now.js" as "text/javascript; charset=utf-8",
    "/app/plan.js": "app/plan.js" as "text/javascript; charset=utf-8",
    "/app/queue.js": "app/queue.js" as "text/javascript; charset=utf-8",
    "/app/report.js": "app/report.js" as "text/javascript; charset=utf-8",
    "/app/shown.js": "app/shown.js" as "text/javascript; charset=utf-8",
    "/app/steer.js": "app/steer.js" as "text/javascript; charset=utf-8",
    "/app/steps.js": "app/steps.js" as "text/javascript; charset=utf-8",
    "/app/stream.js": "app/stream.js" as "text/javascript; charset=utf-8",
    "/app/theme.js": "app/theme.js" as "text/javascript; charset=utf-8",
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

    #[test]
    fn all_that_the_page_and_its_modules_name_is_there() {
        let texts = ASSETS.iter().map(|asset| String::from_utf8_lossy(asset.bytes).into_owned());
        let mut named = 0;
        for text in texts {
            let of_page = text.split(['"', '\'']).filter(|word| {
                word.starts_with('/') && (word.ends_with(".js") || word.ends_with(".css"))
            });
            let of_module = text.split('"').filter_map(|word| word.strip_prefix("./"));
            let of_module = of_module.filter(|word| word.ends_with(".js"));
            let paths =
                of_page.map(str::to_owned).chain(of_module.map(|file| format!("/app/{file}")));
            for path in paths {
                assert!(is_one(&path), "{path}");
                named += 1;
            }
        }
        assert!(named > ASSETS.len(), "{named}");
    }

    #[test]
    fn the_page_shows_texts_of_others_as_text() {
        for asset in ASSETS.iter().filter(|asset| asset.path.starts_with("/app/")) {
            let text = String::from_utf8_lossy(asset.bytes);
            for unsafe_way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(unsafe_way), "{} {unsafe_way}", asset.path);
            }
        }
    }
}
