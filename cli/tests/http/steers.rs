//! What the daemon is asked, and who looks on.

use std::time::{Duration, Instant};

use chandler_cli::http::Limits;
use serde_json::json;

use crate::server::{open_stream, serve};

#[test]
fn the_daemon_is_asked_as_over_its_socket() {
    let server = serve(Limits::default());
    for (path, body, expected) in [
        ("/api/pause", "", "Pause"),
        ("/api/resume", "{}", "Resume"),
        ("/api/stop", "{}", "Stop"),
        ("/api/eval-now", "", "EvalNow"),
        ("/api/skip", "{\"job\":3}", "Skip { job: Some(3) }"),
        ("/api/retry", "{\"job\":3}", "Retry { job: 3 }"),
        ("/api/priority", "{\"job\":3,\"priority\":\"low\"}", "Priority { job: 3, priority: Low }"),
    ] {
        assert_eq!(server.post(path, body), (200, json!({ "message": expected })), "{path}");
    }
    assert_eq!(
        server.post("/api/skip", ""),
        (409, json!({ "error": "it is idle", "hint": "wait" }))
    );
    for (path, body) in [
        ("/api/retry", ""),
        ("/api/retry", "{\"job\":\"x\"}"),
        ("/api/priority", "{\"job\":3,\"priority\":\"urgent\"}"),
        ("/api/pause", "{\"now\":true}"),
    ] {
        assert_eq!(server.post(path, body).0, 400, "{path} {body}");
    }
}

#[test]
fn a_viewer_that_does_not_read_loses_its_place_and_holds_nobody_up() {
    let limits =
        Limits { viewers: 1, write_patience: Duration::from_millis(300), ..Limits::default() };
    let server = serve(limits);
    let (status, slow) = open_stream(&server);
    assert_eq!(status, 200);
    assert_eq!(open_stream(&server).0, 503);
    // More than the buffers of a connection hold.
    let long = "x".repeat(100_000);
    let begun = Instant::now();
    let freed = (0..2000).any(|turn| {
        if turn < 200 {
            server.store.record_event("kind", None, None, &long, None).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
        turn % 20 == 0 && turn > 0 && open_stream(&server).0 == 200
    });
    assert!(freed, "after {:?}", begun.elapsed());
    drop(slow);
}
