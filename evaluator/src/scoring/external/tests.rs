//! Programs that behave, and programs that do not. Each is a line for `/bin/sh`.

use std::time::{Duration, Instant};

use super::*;

const ASKED: Asked =
    Asked { prompt: "6 · 7?", answer: "42", reference: None, set: "sums", step: 7 };

fn never() -> bool {
    false
}

fn start(script: &str, limits: &ExternalLimits) -> ExternalScorer {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned);
    ExternalScorer::start(&argv, limits, |_| {}).unwrap()
}

fn score(scorer: &mut ExternalScorer) -> Result<Option<f64>, ExternalError> {
    scorer.score(&ASKED, &never).map(|reply| reply.score)
}

/// Whether every process that holds the program's output has ended.
fn is_silent(scorer: &ExternalScorer) -> bool {
    // What it said before its end may still be on its way.
    loop {
        match scorer.replies.recv_timeout(Duration::from_secs(30)) {
            Ok(_) => {}
            Err(end) => return end == RecvTimeoutError::Disconnected,
        }
    }
}

/// The error of a program that is then over, and has left nothing behind.
fn ends(script: &str, limits: &ExternalLimits) -> ExternalError {
    let mut scorer = start(script, limits);
    let error = score(&mut scorer).unwrap_err();
    assert!(!scorer.is_running(), "{script}: {error}");
    assert!(is_silent(&scorer), "{script}");
    assert!(matches!(score(&mut scorer), Err(ExternalError::Over { .. })));
    error
}

#[test]
fn a_program_is_asked_answer_by_answer() {
    let script = r#"while read -r line; do case "$line" in
        *'"answer":"42","reference":null,"set":"sums","step":7}'*) echo 1;;
        *'"reference":[1,"ü"]'*) echo '{"score": 0.25, "note": "so so"}';;
        *) echo null;; esac; done"#;
    let mut scorer = start(script, &ExternalLimits::default());
    assert_eq!(score(&mut scorer).unwrap(), Some(1.0));
    let reference = Reference::from(serde_json::json!([1, "ü"]));
    let asked = Asked { answer: "4\n2", reference: Some(&reference), ..ASKED };
    let reply = scorer.score(&asked, &never).unwrap();
    assert_eq!(reply, ExternalScore { score: Some(0.25), note: Some("so so".to_owned()) });
    assert_eq!(scorer.score(&Asked { answer: "", ..ASKED }, &never).unwrap().score, None);
    assert!(scorer.is_running());
}

#[test]
fn a_number_that_is_no_score_is_an_error_of_its_own() {
    let mut scorer = start(
        "read -r l; echo NaN; read -r l; echo 7; read -r l; echo 1",
        &ExternalLimits::default(),
    );
    for _ in 0..2 {
        assert!(matches!(score(&mut scorer), Err(ExternalError::NotAScore { .. })));
    }
    assert_eq!(score(&mut scorer).unwrap(), Some(1.0));
}

#[test]
fn a_program_that_misbehaves_is_ended() {
    let limits = ExternalLimits { max_reply_bytes: 100, ..ExternalLimits::default() };
    let status = |error| match error {
        ExternalError::Died { status, .. } => status.map(|status| status.to_string()),
        error => panic!("{error}"),
    };
    assert_eq!(status(ends("exit 3", &limits)).as_deref(), Some("exit status: 3"));
    assert_eq!(
        status(ends("read -r l; kill -9 $$", &limits)).as_deref(),
        Some("signal: 9 (SIGKILL)")
    );
    assert_eq!(status(ends("exec >&-; sleep 1000", &limits)), None);
    assert!(matches!(
        ends("echo hello; cat", &limits),
        ExternalError::Garbled { .. } | ExternalError::OutOfTurn { .. }
    ));
    assert!(matches!(ends("read -r l; echo hello; cat", &limits), ExternalError::Garbled { .. }));
    let long = "read -r l; while :; do printf 1111111111; done";
    assert!(matches!(ends(long, &limits), ExternalError::ReplyTooLong { limit_bytes: 100, .. }));
}

#[test]
fn a_program_that_says_too_much_is_ended() {
    let limits = ExternalLimits { seconds_per_answer: 0.5, ..ExternalLimits::default() };
    let mut scorer = start("read -r l; printf '1\\n1\\n'; sleep 1000", &limits);
    assert_eq!(score(&mut scorer).unwrap(), Some(1.0));
    // Its second line may still be under way at the second question, and counts as a reply then.
    let error = (0..3).find_map(|_| score(&mut scorer).err()).expect("an error");
    let found_out =
        matches!(error, ExternalError::OutOfTurn { .. } | ExternalError::TooSlow { .. });
    assert!(found_out && !scorer.is_running(), "{error}");
}

#[test]
fn a_program_that_hangs_is_ended_with_all_it_started() {
    let short = ExternalLimits {
        seconds_per_answer: 0.2,
        startup_seconds: 0.0,
        ..ExternalLimits::default()
    };
    let error = ends("sleep 1000 & read -r l; sleep 1000", &short);
    assert!(matches!(error, ExternalError::TooSlow { seconds: 0.2, .. }), "{error}");
    let total = ExternalLimits { total_seconds: 0.2, ..ExternalLimits::default() };
    let error = ends("sleep 1000", &total);
    assert!(matches!(error, ExternalError::TotalTime { seconds: 0.2, .. }), "{error}");
    let mut scorer = start("sleep 1000", &ExternalLimits::default());
    assert!(matches!(scorer.score(&ASKED, &|| true), Err(ExternalError::Stopped)));
    assert!(!scorer.is_running() && is_silent(&scorer));
}

#[test]
fn a_program_that_does_not_read_blocks_nobody() {
    let short = ExternalLimits {
        seconds_per_answer: 0.3,
        startup_seconds: 0.0,
        ..ExternalLimits::default()
    };
    let mut scorer = start("sleep 1000", &short);
    let long = "x".repeat(4 << 20);
    let begun = Instant::now();
    let error = scorer.score(&Asked { answer: &long, ..ASKED }, &never).unwrap_err();
    assert!(matches!(error, ExternalError::TooSlow { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    // One that answers without reading is found out.
    let mut scorer = start("while :; do echo 1; sleep 0.02; done", &ExternalLimits::default());
    let asked = Asked { answer: &long, ..ASKED };
    let error = (0..10).find_map(|_| scorer.score(&asked, &never).err()).expect("an error");
    assert!(matches!(error, ExternalError::OutOfTurn { .. }), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_has_the_memory_that_it_is_given() {
    let limits = ExternalLimits { max_memory_mib: Some(256), ..ExternalLimits::default() };
    let script = "read -r l; if [ \"$(ulimit -v)\" = 262144 ]; then echo 1; else echo 0; fi";
    assert_eq!(score(&mut start(script, &limits)).unwrap(), Some(1.0));
    assert_eq!(score(&mut start(script, &ExternalLimits::default())).unwrap(), Some(0.0));
}

#[test]
fn a_scorer_that_is_dropped_takes_its_group_along() {
    let scorer = start("sleep 1000 & sleep 1000", &ExternalLimits::default());
    let ExternalScorer { group, replies, .. } = scorer;
    drop(group);
    let heard = replies.recv_timeout(Duration::from_secs(30));
    assert!(matches!(heard, Err(RecvTimeoutError::Disconnected)));
}

#[test]
fn the_end_of_its_complaints_is_kept() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done
        read -r l; echo 1; read -r l";
    let mut scorer = start(script, &ExternalLimits::default());
    assert_eq!(score(&mut scorer).unwrap(), Some(1.0));
    let begun = Instant::now();
    while !scorer.last_words().ends_with("line 1999\n") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", scorer.last_words());
        std::thread::yield_now();
    }
    assert!(scorer.last_words().len() <= LAST_WORDS_BYTES);
}

#[test]
fn what_cannot_be_started_is_said() {
    let limits = ExternalLimits::default();
    let started = |argv: &[&str], limits: &ExternalLimits| {
        let argv: Vec<String> = argv.iter().map(|text| (*text).to_owned()).collect();
        ExternalScorer::start(&argv, limits, |_| {}).err().expect("an error").to_string()
    };
    assert!(started(&[], &limits).contains("must name a program"));
    assert!(started(&["/no/such/program"], &limits).contains("/no/such/program cannot be started"));
    for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let limits = ExternalLimits { seconds_per_answer: seconds, ..limits };
        assert!(started(&["true"], &limits).contains("seconds_per_answer must be"));
    }
    let limits_of_0 = ExternalLimits { max_memory_mib: Some(0), ..limits };
    assert!(started(&["true"], &limits_of_0).contains("max_memory_mib must be"));
    let configured = ExternalScorer::start(
        &["/bin/sh", "-c", "read -r l; echo $SCORE; read -r l"].map(str::to_owned),
        &limits,
        |command| {
            command.env("SCORE", "0.5");
        },
    );
    assert_eq!(score(&mut configured.unwrap()).unwrap(), Some(0.5));
}
