//! Who is turned away, and what is cut off.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chandler_cli::http::{HttpServer, Limits};
use chandler_cli::state_dir::StateDir;
use chandler_cli::store::Store;

use crate::server::{answer, body_of, code, header, listening_on, serve};

#[test]
fn who_comes_without_the_token_or_by_another_name_is_turned_away() {
    let server = serve(Limits::default());
    let bearer = server.bearer();
    assert_eq!(server.get("/api/status").0, 200);
    let health = server.request("GET /healthz", &[], "");
    assert_eq!((code(&health), body_of(&health)), (200, "ok\n"));
    for path in ["/api/status", "/metrics", "/api/stream", "/app/main.js", "/nothing"] {
        for wrong in [None, Some("Bearer "), Some("Bearer 00"), Some("Basic x")] {
            let headers: Vec<_> = wrong.map(|value| ("Authorization", value)).into_iter().collect();
            let answer = server.request(&format!("GET {path}"), &headers, "");
            assert_eq!(code(&answer), 401, "{path} {wrong:?}");
            assert!(body_of(&answer).contains("chandler dashboard"));
            assert_eq!(header(&answer, "www-authenticate"), Some("Bearer"));
        }
    }
    let rebound = [("Host", "evil.example:7917"), ("Authorization", &*bearer)];
    let answer = server.request("GET /api/status", &rebound, "");
    assert_eq!(code(&answer), 421);
    assert!(body_of(&answer).contains("http.hosts"), "{answer}");
    assert_eq!(code(&server.send("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")), 421);
    let foreign = [
        ("Authorization", &*bearer),
        ("Content-Type", "application/json"),
        ("Origin", "http://evil.example"),
    ];
    assert_eq!(code(&server.request("POST /api/stop", &foreign, "{}")), 403);
}

#[test]
fn the_address_with_the_token_signs_a_browser_in() {
    let server = serve(Limits::default());
    let page = server.request("GET /", &[], "");
    assert_eq!(code(&page), 401);
    assert!(body_of(&page).contains("<pre>chandler dashboard</pre>"));
    let answer = server.request(&format!("GET /?token={}", server.token), &[], "");
    assert_eq!((code(&answer), header(&answer, "location")), (303, Some("/")));
    assert_eq!(header(&answer, "cache-control"), Some("no-store"));
    let set = header(&answer, "set-cookie").unwrap();
    assert!(set.ends_with("; HttpOnly; SameSite=Strict; Path=/"), "{set}");
    let cookie = set.split(';').next().unwrap();
    let page = server.request("GET /", &[("Cookie", cookie)], "");
    assert_eq!(code(&page), 200);
    let policy = header(&page, "content-security-policy").unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(header(&page, "x-content-type-options"), Some("nosniff"));
    assert_eq!(header(&page, "referrer-policy"), Some("no-referrer"));

    let address = server.server.address().to_string();
    let ours = format!("http://{address}");
    let json = ("Content-Type", "application/json");
    for (more, expected) in [
        (vec![json], 403),
        (vec![json, ("Origin", &*ours)], 200),
        (vec![json, ("Sec-Fetch-Site", "same-origin")], 200),
        (vec![json, ("Origin", &*ours), ("Sec-Fetch-Site", "cross-site")], 403),
        (vec![("Content-Type", "text/plain"), ("Origin", &*ours)], 415),
        (vec![("Origin", &*ours)], 415),
    ] {
        let headers: Vec<_> = [("Cookie", cookie)].into_iter().chain(more).collect();
        let answer = server.request("POST /api/pause", &headers, "{}");
        assert_eq!(code(&answer), expected, "{headers:?}: {answer}");
    }
}

#[test]
fn what_is_too_large_too_slow_or_too_much_is_cut_off() {
    let patience = Duration::from_millis(300);
    let limits = Limits {
        connections: 4,
        header_patience: patience,
        answer_patience: patience,
        ..Limits::default()
    };
    let server = serve(limits);
    let bearer = server.bearer();
    let long = "x".repeat(20 * 1024);
    let answer = server.request("GET /healthz", &[("X-Long", &long)], "");
    assert_eq!(code(&answer), 431);
    let many: Vec<_> = (0..100).map(|_| ("X-Many", "y")).collect();
    assert_eq!(code(&server.request("GET /healthz", &many, "")), 431);
    let (status, error) = server.post("/api/skip", &format!("{{\"job\":\"{long}\"}}"));
    assert_eq!(status, 413, "{error}");

    let begun = Instant::now();
    for beginning in ["", "GET /healthz HTT", "GET /healthz HTTP/1.1\r\nHost: loc"] {
        let answer = server.send(beginning);
        assert!(answer.is_empty() || code(&answer) == 408, "{answer}");
    }
    let slow = format!(
        "POST /api/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{{"
    );
    assert_eq!(code(&server.send(&slow)), 408);
    assert!(begun.elapsed() > patience, "nobody was waited for");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn there_are_only_so_many_connections() {
    let server = serve(Limits { connections: 4, ..Limits::default() });
    let idle: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    let mut answer = String::new();
    server.connect().read_to_string(&mut answer).unwrap();
    assert_eq!(code(&answer), 503);
    assert_eq!(header(&answer, "retry-after"), Some("5"));
    drop(idle);
    let begun = Instant::now();
    while !server.request("GET /healthz", &[], "").ends_with("ok\n") {
        assert!(begun.elapsed() < Duration::from_secs(20), "the places are not free again");
    }
}

#[test]
fn no_path_leads_to_a_file_of_the_machine() {
    let server = serve(Limits::default());
    let bearer = server.bearer();
    for path in [
        "/../token",
        "/../../etc/passwd",
        "/%2e%2e/token",
        "/..%2ftoken",
        "//etc/passwd",
        "/uplot/../app/main.js",
        "/assets/app/main.js",
        "/app/main.js%00",
        "/uplot/",
        "/\\..\\token",
    ] {
        let answer = server.request(&format!("GET {path}"), &[("Authorization", &bearer)], "");
        assert!(matches!(code(&answer), 400 | 404), "{path}: {answer}");
    }
    let head = [("Authorization", &*bearer)];
    let script = server.request("GET /app/main.js", &head, "");
    assert_eq!(header(&script, "content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(header(&script, "cache-control"), Some("no-cache"));
    let etag = header(&script, "etag").unwrap();
    let again = server.request("GET /app/main.js", &[head[0], ("If-None-Match", etag)], "");
    assert_eq!((code(&again), body_of(&again)), (304, ""));
    assert_eq!(code(&server.request("POST /app/main.js", &[head[0]], "")), 405);
    assert_eq!(code(&server.request("GET /api/pause", &head, "")), 405);
    assert_eq!(server.get("/api/nothing").0, 404);
}

#[test]
fn a_port_that_is_taken_is_left_to_its_owner() {
    let first = serve(Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::choose(Some(Path::new("state")), folder.path());
    state.init("").unwrap();
    drop(Store::open(&state.database()).unwrap());
    let taken = first.server.address().port();
    let config = listening_on(taken.into());
    let second = HttpServer::start(&state, &config, Arc::new(answer), None).unwrap();
    assert_ne!(second.address().port(), taken);
    assert_eq!(second.url(), format!("http://{}", second.address()));
    let mut elsewhere = listening_on(0);
    elsewhere.http.address = "192.0.2.1".into();
    let error = HttpServer::start(&state, &elsewhere, Arc::new(answer), None).unwrap_err();
    assert!(error.hint().unwrap().contains("http.enabled"), "{error}");
}
