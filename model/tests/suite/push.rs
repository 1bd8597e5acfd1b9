//! The hub's side of an upload, spoken by a small server on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use chandler_model::hub::{Push, PushError, PushOptions, Pushed};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::model_folder;

const TOKEN: &str = "secret-token";
const PART_BYTES: usize = 100_000;

/// What a hub has, and how it behaves.
#[derive(Default)]
struct State {
    exists: bool,
    private: bool,
    /// Large files by their oid.
    objects: BTreeMap<String, Vec<u8>>,
    /// Parts by object and number.
    parts: BTreeMap<(String, usize), Vec<u8>>,
    verified: Vec<String>,
    /// Files of the newest commit: content, or the oid of a large one.
    files: BTreeMap<String, Result<Vec<u8>, String>>,
    message: String,
    multipart: bool,
    /// Answers that are given before any other, by what the path holds.
    failures: Vec<(&'static str, u16)>,
    /// Paths that were asked with the token where it has no business.
    leaks: Vec<String>,
}

struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    token: bool,
    body: Vec<u8>,
}

impl Hub {
    fn serve(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let (shared, base) = (Arc::clone(&state), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, base) = (Arc::clone(&shared), base.clone());
                std::thread::spawn(move || converse(stream.unwrap(), &shared, &base));
            }
        });
        Self { endpoint, state }
    }

    fn push(&self, token: &str, folder: &Path, card: Option<&str>) -> Result<Pushed, PushError> {
        let options = PushOptions {
            endpoint: Some(self.endpoint.clone()),
            token: Some(token.to_owned()),
            private: true,
            message: "a message".to_owned(),
            max_retries: Some(1),
        };
        Push::begin("owner/model", &options)?.commit(folder, card, &|_| {})
    }
}

fn converse(stream: TcpStream, state: &Mutex<State>, base: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        let (status, headers, body) = reply(&request, &mut state.lock().unwrap(), base);
        let head =
            format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        if request.method != "HEAD" && stream.write_all(&body).is_err() {
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut first = String::new();
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return None;
    }
    let (mut length, mut token) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => token = value.contains(TOKEN),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut words = first.split_whitespace().map(str::to_owned);
    Some(Request { method: words.next().unwrap(), path: words.next().unwrap(), token, body })
}

fn reply(request: &Request, state: &mut State, base: &str) -> (u16, String, Vec<u8>) {
    let nothing = String::new();
    if let Some(at) = state.failures.iter().position(|(part, _)| request.path.contains(part)) {
        let (_, status) = state.failures.remove(at);
        return (status, nothing, json!({ "error": "no luck" }).to_string().into_bytes());
    }
    let told = |value: Value| (200, String::new(), value.to_string().into_bytes());
    let path = request.path.as_str();
    if let Some(place) = path.strip_prefix("/storage/") {
        return store(request, place, state);
    }
    if !request.token {
        return (401, nothing, vec![]);
    }
    match (request.method.as_str(), path) {
        ("POST", "/api/repos/create") => {
            let wanted: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(
                (&wanted["organization"], &wanted["name"]),
                (&json!("owner"), &json!("model"))
            );
            let was_there = std::mem::replace(&mut state.exists, true);
            state.private = wanted["private"] == true;
            if was_there { (409, nothing, b"{}".to_vec()) } else { told(json!({ "url": "x" })) }
        }
        ("POST", "/api/models/owner/model/preupload/main") => {
            let wanted: Value = serde_json::from_slice(&request.body).unwrap();
            let mode = |file: &Value| {
                let name = file["path"].as_str().unwrap();
                let large = name.ends_with(".safetensors") || name == "tokenizer.json";
                json!({ "path": name, "uploadMode": if large { "lfs" } else { "regular" } })
            };
            let files: Vec<Value> = wanted["files"].as_array().unwrap().iter().map(mode).collect();
            told(json!({ "files": files }))
        }
        ("POST", "/owner/model.git/info/lfs/objects/batch") => {
            let wanted: Value = serde_json::from_slice(&request.body).unwrap();
            let objects = wanted["objects"].as_array().unwrap().iter();
            told(json!({ "objects": objects.map(|o| object(o, state, base)).collect::<Vec<_>>() }))
        }
        ("POST", "/owner/model.git/verify") => {
            let told_size: Value = serde_json::from_slice(&request.body).unwrap();
            let oid = told_size["oid"].as_str().unwrap();
            assert_eq!(state.objects[oid].len() as u64, told_size["size"].as_u64().unwrap());
            state.verified.push(oid.to_owned());
            (200, nothing, vec![])
        }
        ("POST", "/api/models/owner/model/commit/main") => commit(&request.body, state),
        ("HEAD", "/owner/model/resolve/main/README.md") => {
            let there = state.files.contains_key("README.md");
            (if there { 200 } else { 404 }, nothing, vec![])
        }
        ("GET", "/api/models/owner/model") if state.exists => told(json!({ "id": "owner/model" })),
        ("GET", "/api/models/Base/Model") => told(json!({ "cardData": { "license": "mit" } })),
        _ => (404, nothing, vec![]),
    }
}

/// What the batch API says of an object: nothing where it is there.
fn object(wanted: &Value, state: &State, base: &str) -> Value {
    let oid = wanted["oid"].as_str().unwrap();
    let size = wanted["size"].as_u64().unwrap() as usize;
    if state.objects.contains_key(oid) {
        return json!({ "oid": oid, "size": size });
    }
    let verify = json!({ "href": format!("{base}/owner/model.git/verify") });
    let upload = if state.multipart {
        let mut header = json!({ "chunk_size": PART_BYTES.to_string() });
        for number in 1..=size.div_ceil(PART_BYTES) {
            header[format!("{number:05}")] = json!(format!("{base}/storage/{oid}/{number}"));
        }
        json!({ "href": format!("{base}/storage/{oid}/complete"), "header": header })
    } else {
        json!({ "href": format!("{base}/storage/{oid}"), "header": { "x-signed": "yes" } })
    };
    json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
}

fn store(request: &Request, place: &str, state: &mut State) -> (u16, String, Vec<u8>) {
    // On loopback the storage has the hub's own address; what matters is that a PUT has no token.
    if request.token && request.method == "PUT" {
        state.leaks.push(request.path.clone());
    }
    let Some((oid, part)) = place.split_once('/') else {
        state.objects.insert(place.to_owned(), request.body.clone());
        return (200, String::new(), vec![]);
    };
    if part == "complete" {
        let told: Value = serde_json::from_slice(&request.body).unwrap();
        let parts = told["parts"].as_array().unwrap();
        let mut whole = vec![];
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(part["partNumber"], index + 1);
            assert_eq!(part["etag"], format!("\"{}\"", index + 1));
            whole.extend(&state.parts[&(oid.to_owned(), index + 1)]);
        }
        state.objects.insert(oid.to_owned(), whole);
        return (200, String::new(), b"{}".to_vec());
    }
    let number: usize = part.parse().unwrap();
    state.parts.insert((oid.to_owned(), number), request.body.clone());
    (200, format!("ETag: \"{number}\"\r\n"), vec![])
}

fn commit(body: &[u8], state: &mut State) -> (u16, String, Vec<u8>) {
    use base64::Engine;
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).unwrap();
        let value = &line["value"];
        let name = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str().unwrap() {
            "header" => value["summary"].as_str().unwrap().clone_into(&mut state.message),
            "file" => {
                let content = value["content"].as_str().unwrap();
                let bytes = base64::engine::general_purpose::STANDARD.decode(content).unwrap();
                state.files.insert(name, Ok(bytes));
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap();
                assert!(state.objects.contains_key(oid), "{name} was not uploaded before");
                state.files.insert(name, Err(oid.to_owned()));
            }
            other => panic!("{other}"),
        }
    }
    (200, String::new(), json!({ "commitOid": "c0ffee" }).to_string().into_bytes())
}

/// Every file of the folder is on the hub, byte for byte.
fn assert_there(state: &State, folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        let name = entry.file_name().into_string().unwrap();
        match &state.files[&name] {
            Ok(content) => assert!(*content == bytes, "{name}"),
            Err(oid) => {
                let hash: String =
                    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(*oid, hash, "{name}");
                assert!(state.objects[oid] == bytes, "{name}");
                assert!(state.verified.contains(oid), "{name}");
            }
        }
    }
}

#[test]
fn a_folder_arrives_whole_and_only_once() {
    for multipart in [false, true] {
        let hub = Hub::serve(State { multipart, ..State::default() });
        let folder = model_folder("qwen2");
        let pushed = hub.push(TOKEN, &folder, Some("# a card\n")).unwrap();
        assert_eq!(pushed.url, format!("{}/owner/model", hub.endpoint));
        assert_eq!(pushed.commit, "c0ffee");
        assert!(pushed.uploaded_bytes > 100_000 && pushed.files.contains(&"README.md".to_owned()));
        {
            let state = hub.state.lock().unwrap();
            assert_there(&state, &folder);
            assert_eq!(state.files["README.md"], Ok(b"# a card\n".to_vec()));
            assert_eq!(state.message, "a message");
            assert!(state.private && state.leaks.is_empty(), "{:?}", state.leaks);
            assert_eq!(state.parts.is_empty(), !multipart);
        }
        let again = hub.push(TOKEN, &folder, None).unwrap();
        assert_eq!(again.uploaded_bytes, 0, "what is there is not sent again");
    }
}

#[test]
fn a_card_that_is_there_is_found_and_a_base_tells_its_license() {
    let hub = Hub::serve(State::default());
    let options = PushOptions {
        endpoint: Some(hub.endpoint.clone()),
        token: Some(TOKEN.to_owned()),
        ..PushOptions::default()
    };
    let push = Push::begin("owner/model", &options).unwrap();
    assert!(!push.has_card().unwrap());
    push.commit(&model_folder("qwen3"), Some("card"), &|_| {}).unwrap();
    assert!(push.has_card().unwrap());
    assert_eq!(push.card_of("Base/Model"), Some(json!({ "license": "mit" })));
    assert_eq!(push.card_of("Base/Other"), None);
}

#[test]
fn what_may_pass_is_tried_again() {
    let failures = vec![("preupload", 503), ("objects/batch", 500), ("/storage/", 502)];
    let hub = Hub::serve(State { failures, ..State::default() });
    hub.push(TOKEN, &model_folder("qwen3"), None).unwrap();
    assert_there(&hub.state.lock().unwrap(), &model_folder("qwen3"));
}

#[test]
fn a_token_that_may_make_no_repository_writes_to_one_that_is_there() {
    let failures = vec![("create", 403)];
    let hub = Hub::serve(State { failures, exists: true, ..State::default() });
    hub.push(TOKEN, &model_folder("qwen3"), None).unwrap();
    assert_there(&hub.state.lock().unwrap(), &model_folder("qwen3"));
}

#[test]
fn refusals_are_told_apart() {
    let refused = |failures: Vec<(&'static str, u16)>, token: &str| {
        let hub = Hub::serve(State { failures, ..State::default() });
        let error = hub.push(token, &model_folder("qwen3"), None).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        assert!(!format!("{error:?}").contains(TOKEN));
        assert!(hub.state.lock().unwrap().files.is_empty());
        error
    };
    assert!(matches!(refused(vec![], "another"), PushError::UnknownToken));
    let error = refused(vec![("create", 403)], TOKEN);
    assert!(matches!(&error, PushError::Forbidden { said, .. } if said == "no luck"), "{error}");
    let error = refused(vec![("/commit/", 409)], TOKEN);
    assert!(matches!(&error, PushError::Answered { status: 409, .. }), "{error}");
    assert!(error.hint().unwrap().contains("push again"));
    assert!(matches!(refused(vec![("preupload", 404)], TOKEN), PushError::NotFound { .. }));
    let error = refused(vec![("/storage/", 403)], TOKEN);
    assert!(matches!(error, PushError::Forbidden { .. }), "{error}");
    let hub = Hub::serve(State::default());
    let empty = tempfile::tempdir().unwrap();
    let error = hub.push(TOKEN, empty.path(), Some("card")).unwrap_err();
    assert!(matches!(error, PushError::NothingThere { .. }), "{error}");
    let nobody = PushOptions {
        endpoint: Some("http://127.0.0.1:9".to_owned()),
        token: Some(TOKEN.to_owned()),
        max_retries: Some(0),
        ..PushOptions::default()
    };
    let error = Push::begin("owner/model", &nobody).err().unwrap();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
    for id in ["model", "a/b/c", "a/", "../b", "a/b c"] {
        let error = Push::begin(id, &nobody).err().unwrap();
        assert!(matches!(error, PushError::BadId { .. }), "{error}");
    }
}
