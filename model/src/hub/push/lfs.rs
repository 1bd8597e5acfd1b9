//! Large files, by Git LFS: the batch API, and the hub's transfers `basic` and `multipart`.
//!
//! <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>; `multipart` is the hub's own.

use reqwest::blocking::Body;
use reqwest::header::{ETAG, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::{BRANCH, PushError, Source, Upload};

/// Objects of one question.
const BATCH: usize = 100;
/// Part sizes are the hub's wish; this is what is allowed to be wished.
const PART_BYTES: std::ops::RangeInclusive<u64> = 1..=5 << 30;
const MAX_PARTS: u64 = 10_000;

#[derive(Deserialize)]
struct Answer {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

#[derive(Deserialize)]
struct Refused {
    code: u16,
    #[serde(default)]
    message: String,
}

/// Uploads those of `objects` that the hub does not have, and says how many bytes they were.
pub(super) fn upload(
    client: &Client,
    id: &str,
    objects: &[(String, &Source)],
    progress: &dyn Fn(Upload),
) -> Result<u64, PushError> {
    let url = format!("{}/{id}.git/info/lfs/objects/batch", client.endpoint());
    let mut sent = 0;
    for batch in objects.chunks(BATCH) {
        let wanted: Vec<Value> =
            batch.iter().map(|(oid, source)| json!({ "oid": oid, "size": source.size })).collect();
        let question = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "ref": { "name": BRANCH },
            "objects": wanted,
        });
        let answer: Answer = serde_json::from_value(client.post_lfs(&url, &question)?)
            .map_err(|error| client.not_understood(error.to_string()))?;
        for (oid, source) in batch {
            let object = answer.objects.iter().find(|object| object.oid == *oid);
            let object = object.ok_or_else(|| client.not_understood("it leaves out an object"))?;
            if let Some(Refused { code, message }) = &object.error {
                let (id, said) = (id.to_owned(), message.clone());
                return Err(PushError::Answered { id, status: *code, said });
            }
            let Some(actions) = &object.actions else { continue };
            if let Some(action) = &actions.upload {
                send(client, action, oid, source, progress)?;
                sent += source.size;
            }
            if let Some(action) = &actions.verify {
                client.post_lfs(&action.href, &json!({ "oid": oid, "size": source.size }))?;
            }
        }
    }
    Ok(sent)
}

/// In parts where the action names their size, else in one piece.
fn send(
    client: &Client,
    action: &Action,
    oid: &str,
    source: &Source,
    progress: &dyn Fn(Upload),
) -> Result<(), PushError> {
    let tell = |done| progress(Upload { file: source.name.clone(), done, total: source.size });
    tell(0);
    let Some(wish) = action.header.get("chunk_size") else {
        let headers = headers(client, &action.header)?;
        client.put(&action.href, &headers, || Ok(part(source, 0, source.size)))?;
        tell(source.size);
        return Ok(());
    };
    let size = wish.as_u64().or_else(|| wish.as_str()?.parse().ok());
    let size = size.filter(|size| PART_BYTES.contains(size));
    let size = size.ok_or_else(|| client.not_understood("its parts have no size"))?;
    let count = source.size.div_ceil(size);
    if count > MAX_PARTS {
        return Err(client.not_understood(format!("it wants {count} parts")));
    }
    let mut parts = vec![];
    for number in 1..=count {
        // The addresses of the parts stand under their numbers: 00001 and so on.
        let named = action.header.iter().find(|(key, _)| key.parse() == Ok(number));
        let url = named.and_then(|(_, url)| url.as_str());
        let url =
            url.ok_or_else(|| client.not_understood(format!("part {number} has no place")))?;
        let start = (number - 1) * size;
        let length = size.min(source.size - start);
        let sent = client.put(url, &HeaderMap::new(), || Ok(part(source, start, length)))?;
        let etag = sent.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        let etag = etag.ok_or_else(|| client.not_understood("a part has no ETag"))?;
        parts.push(json!({ "partNumber": number, "etag": etag }));
        tell(start + length);
    }
    client.post_lfs(&action.href, &json!({ "oid": oid, "parts": parts })).map(drop)
}

fn headers(client: &Client, wanted: &Map<String, Value>) -> Result<HeaderMap, PushError> {
    let mut headers = HeaderMap::new();
    for (name, value) in wanted {
        let pair = value.as_str().and_then(|value| {
            Some((name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?))
        });
        let (name, value) = pair.ok_or_else(|| client.not_understood("it names odd headers"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// A part of a file as a body, read while it is sent.
fn part(source: &Source, start: u64, length: u64) -> Body {
    Body::sized(source.part(start, length), length)
}
