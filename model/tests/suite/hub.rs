//! The hub's protocol, spoken by a small server on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::Device;
use chandler_model::CausalLm;
use chandler_model::hub::{HubError, HubOptions, ModelSource, resolve};

use crate::support::model_folder;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves files of one repository, `owner/model`, to whoever has the token.
struct Hub {
    endpoint: String,
    requests: Arc<AtomicUsize>,
}

impl Hub {
    fn serve(folder: &Path, token: Option<&'static str>) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let (files, count) = (Arc::new(files), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, count) = (Arc::clone(&files), Arc::clone(&count));
                std::thread::spawn(move || converse(stream.unwrap(), &files, token, &count));
            }
        });
        Self { endpoint, requests }
    }
}

fn converse(
    stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    token: Option<&str>,
    count: &AtomicUsize,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        count.fetch_add(1, Ordering::SeqCst);
        let mut authorized = token.is_none();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header.trim().is_empty() {
                break;
            }
            let is_auth = header.to_ascii_lowercase().starts_with("authorization:");
            authorized |= is_auth && token.is_some_and(|token| header.contains(token));
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (status, extra, body) = reply(path, files, authorized);
        let etag = format!("\"{:x}\"", body.len() * 31 + path.len());
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: {etag}\r\nX-Repo-Commit: \
             {COMMIT}\r\n{extra}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        if method != "HEAD" && stream.write_all(&body).is_err() {
            return;
        }
    }
}

fn reply<'a>(
    path: &str,
    files: &'a BTreeMap<String, Vec<u8>>,
    authorized: bool,
) -> (&'static str, &'static str, std::borrow::Cow<'a, [u8]>) {
    let nothing = std::borrow::Cow::Borrowed(&[][..]);
    if !authorized {
        return ("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", nothing);
    }
    if ["/api/models/owner/model", "/api/models/owner/model/revision/main"].contains(&path) {
        return ("200 OK", "", std::borrow::Cow::Borrowed(&b"{\"id\": \"owner/model\"}"[..]));
    }
    let Some(rest) = path.strip_prefix("/owner/model/resolve/") else {
        return ("404 Not Found", "X-Error-Code: RepoNotFound\r\n", nothing);
    };
    let (revision, file) = rest.split_once('/').unwrap();
    if revision != "main" && revision != COMMIT {
        return ("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", nothing);
    }
    match files.get(file) {
        Some(bytes) => ("200 OK", "", std::borrow::Cow::Borrowed(bytes)),
        None => ("404 Not Found", "X-Error-Code: EntryNotFound\r\n", nothing),
    }
}

fn source(id: &str, revision: Option<&str>) -> ModelSource {
    ModelSource::Hub { id: id.to_owned(), revision: revision.map(str::to_owned) }
}

fn options(endpoint: &str, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: Some(endpoint.to_owned()),
        token: Some("secret-token".to_owned()),
        cache_dir: Some(cache.to_owned()),
        offline: false,
        max_retries: Some(0),
    }
}

#[test]
fn a_model_is_downloaded_once_and_loads() {
    for name in ["qwen3", "qwen2"] {
        let hub = Hub::serve(&model_folder(name), Some("secret-token"));
        let cache = tempfile::tempdir().unwrap();
        let seen = Arc::new(Mutex::new(vec![]));
        let record = Arc::clone(&seen);
        let tell = Arc::new(move |now: chandler_model::hub::Download| {
            record.lock().unwrap().push(now);
        });
        let model = source("owner/model", None);
        let folder = resolve(&model, &options(&hub.endpoint, cache.path()), tell.clone()).unwrap();
        CausalLm::load(&folder, None, &Device::Cpu).unwrap();
        let weights =
            seen.lock().unwrap().iter().filter(|d| d.file.ends_with(".safetensors")).count();
        assert!(weights > 0, "{name}: progress is told");
        let mut read = String::new();
        std::fs::File::open(folder.join("tokenizer.json"))
            .unwrap()
            .read_to_string(&mut read)
            .unwrap();
        assert!(!read.is_empty());

        let requests = hub.requests.load(Ordering::SeqCst);
        let offline = HubOptions { offline: true, ..options(&hub.endpoint, cache.path()) };
        assert_eq!(resolve(&model, &offline, tell.clone()).unwrap(), folder);
        assert_eq!(hub.requests.load(Ordering::SeqCst), requests, "offline asks nobody");
        let pinned = source("owner/model", Some(COMMIT));
        let online = options(&hub.endpoint, cache.path());
        assert_eq!(resolve(&pinned, &online, tell).unwrap(), folder);
    }
}

#[test]
fn refusals_are_told_apart() {
    let hub = Hub::serve(&model_folder("qwen3"), Some("another-token"));
    let open = Hub::serve(&model_folder("qwen3"), None);
    let empty = tempfile::tempdir().unwrap();
    std::fs::copy(model_folder("qwen3").join("config.json"), empty.path().join("config.json"))
        .unwrap();
    let bare = Hub::serve(empty.path(), None);
    let cache = tempfile::tempdir().unwrap();
    let ask = |endpoint: &str, id: &str, revision: Option<&str>| {
        let error =
            resolve(&source(id, revision), &options(endpoint, cache.path()), Arc::new(|_| {}));
        let error = error.unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        error
    };
    assert!(matches!(ask(&hub.endpoint, "owner/model", None), HubError::Refused { .. }));
    assert!(matches!(ask(&open.endpoint, "owner/other", None), HubError::NotFound { .. }));
    let error = ask(&open.endpoint, "owner/model", Some("v9"));
    assert!(matches!(&error, HubError::NoRevision { revision, .. } if revision == "v9"), "{error}");
    let error = ask(&bare.endpoint, "owner/model", None);
    assert!(matches!(&error, HubError::NoFile { file, .. } if file == "model.safetensors"));
    let nobody = ask("http://127.0.0.1:9", "owner/nobody", None);
    assert!(matches!(nobody, HubError::Unreachable { .. }), "{nobody}");
    let offline = HubOptions { offline: true, ..options("http://127.0.0.1:9", cache.path()) };
    let error = resolve(&source("owner/nobody", None), &offline, Arc::new(|_| {})).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
}

#[test]
fn folders_and_ids_are_told_apart() {
    let here = env!("CARGO_MANIFEST_DIR");
    assert_eq!(ModelSource::parse(here), ModelSource::Folder(here.into()));
    assert_eq!(ModelSource::parse("./a/b"), ModelSource::Folder("./a/b".into()));
    assert_eq!(ModelSource::parse("model"), ModelSource::Folder("model".into()));
    assert_eq!(ModelSource::parse("Qwen/Qwen3-0.6B"), source("Qwen/Qwen3-0.6B", None));
    assert_eq!(ModelSource::parse("a/b@v1"), source("a/b", Some("v1")));
}
