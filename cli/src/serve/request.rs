//! What a client asks: the JSON of OpenAI's chat completions and completions, checked field by field.
//!
//! Fields that nothing here depends on are passed over, as other servers do. One that would change
//! the answer and cannot be honoured is refused.

use std::collections::BTreeMap;

use chandler_evaluator::SamplingOptions;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::refusal::Refusal;
use crate::worker::Query;

/// Answers to one request at most.
pub(crate) const MOST_ROWS: usize = 8;
/// Texts that end an answer.
const MOST_STOPS: usize = 4;
/// Of one of them.
const MOST_STOP_BYTES: usize = 1024;
/// Of a plain completion, where the request does not say.
const USUAL_COMPLETION_TOKENS: usize = 16;

/// Below this it is greedy: no draw would take another token than the most probable one, and scores
/// divided by less could leave the range of numbers.
const LEAST_TEMPERATURE: f64 = 1e-6;
/// What may be added to the score of a token, or taken from it.
const MOST_BIAS: f64 = 100.0;

/// Which of the two interfaces is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

impl Face {
    /// The field that holds the prompt.
    pub(crate) fn prompt_field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
        }
    }
}

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) face: Face,
    /// Whatever is served, where it is not said.
    pub(crate) model: Option<String>,
    pub(crate) prompts: Vec<Query>,
    /// Answers to each prompt.
    pub(crate) choices: usize,
    /// As many as there may be, where it is not said.
    pub(crate) max_new_tokens: Option<usize>,
    pub(crate) sampling: SamplingOptions,
    pub(crate) stop: Vec<String>,
    pub(crate) stream: bool,
    /// Whether a stream ends with the count of tokens.
    pub(crate) include_usage: bool,
}

impl Asked {
    /// Answers in all.
    pub(crate) fn rows(&self) -> usize {
        self.prompts.len() * self.choices
    }

    /// Reads a request; `fresh_seed` is the seed where it names none.
    pub(crate) fn parse(face: Face, body: &[u8], fresh_seed: u64) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            Refusal::invalid(
                None,
                format!("We could not parse the JSON body of your request: {error}"),
            )
        })?;
        let Value::Object(mut object) = value else {
            return Err(Refusal::invalid(None, "The body must be a JSON object."));
        };
        let prompts = match face {
            Face::Chat => vec![chat(&mut object)?],
            Face::Completion => texts(&mut object)?,
        };
        let fields = Fields(&object);
        let choices = fields.whole("n", 1, MOST_ROWS as u64)?.unwrap_or(1) as usize;
        if prompts.len() * choices > MOST_ROWS {
            let message = format!("{MOST_ROWS} answers to one request are the most.");
            return Err(Refusal::invalid(Some("n"), message));
        }
        refuse_what_is_not_offered(face, &fields)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let usual = (face == Face::Completion).then_some(USUAL_COMPLETION_TOKENS);
        let most = fields.whole("max_completion_tokens", 1, u64::MAX)?;
        let most = most.or(fields.whole("max_tokens", 1, u64::MAX)?);
        Ok(Self {
            face,
            model: fields.text("model")?,
            prompts,
            choices,
            max_new_tokens: most.map(|most| most as usize).or(usual),
            sampling: sampling(&fields, fresh_seed)?,
            stop: stops(&fields)?,
            stream,
            include_usage: include_usage(&fields, stream)?,
        })
    }
}

/// OpenAI's defaults: a temperature of 1, and nothing ruled out.
fn sampling(fields: &Fields, fresh_seed: u64) -> Result<SamplingOptions, Refusal> {
    let top_k = fields.integer("top_k")?.filter(|k| *k > 0);
    let seed = fields.integer("seed")?.map_or(fresh_seed, |seed| seed as u64);
    let penalty = fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(1.0);
    let temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
    Ok(SamplingOptions {
        temperature: if temperature < LEAST_TEMPERATURE { 0.0 } else { temperature },
        top_k: top_k.map(|k| k as usize),
        top_p: fields.number("top_p", 0.0, 1.0)?.filter(|p| *p < 1.0),
        min_p: fields.number("min_p", 0.0, 1.0)?.filter(|p| *p > 0.0),
        repetition_penalty: penalty,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields)?,
        seed,
        ..SamplingOptions::default()
    })
}

/// What is added to the scores of tokens, by their ids, which JSON has as texts.
fn logit_bias(fields: &Fields) -> Result<BTreeMap<u32, f32>, Refusal> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(BTreeMap::new()) };
    let one = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| bias.abs() <= MOST_BIAS)?;
        Some((id.parse().ok()?, bias as f32))
    };
    biases.iter().map(one).collect::<Option<_>>().ok_or_else(|| {
        let message = "'logit_bias' must map token ids, as strings, to numbers from -100 to 100.";
        Refusal::invalid(Some("logit_bias"), message)
    })
}

fn refuse_what_is_not_offered(face: Face, fields: &Fields) -> Result<(), Refusal> {
    let refuse = |name, what: &str| {
        Err(Refusal::invalid(Some(name), format!("{name}: {what} not offered here.")))
    };
    let logprobs = match face {
        Face::Chat => fields.flag("logprobs")?.unwrap_or(false),
        Face::Completion => fields.integer("logprobs")?.is_some(),
    };
    if logprobs || fields.integer("top_logprobs")?.unwrap_or(0) > 0 {
        return refuse("logprobs", "log-probabilities are");
    }
    let format = fields.object("response_format")?.and_then(|format| format.get("type"));
    if format.is_some_and(|kind| kind != "text") {
        return refuse("response_format", "a format other than text is");
    }
    match fields.get("tool_choice") {
        None => {}
        Some(Value::String(word)) if word == "auto" || word == "none" => {}
        Some(_) => return refuse("tool_choice", "forcing a tool is"),
    }
    if face == Face::Completion {
        if fields.flag("echo")?.unwrap_or(false) {
            return refuse("echo", "repeating the prompt is");
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return refuse("suffix", "a suffix is");
        }
        let choices = fields.integer("n")?.unwrap_or(1);
        if fields.integer("best_of")?.is_some_and(|of| of > choices) {
            return refuse("best_of", "choosing the best of several answers is");
        }
    }
    Ok(())
}

/// A text or up to four of them.
fn stops(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let wrong = |message: String| Err(Refusal::invalid(Some("stop"), message));
    let stops = match fields.get("stop") {
        None => return Ok(vec![]),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => {
            let texts = stops.iter().map(|stop| stop.as_str().map(str::to_owned));
            match texts.collect() {
                Some(texts) => texts,
                None => return wrong("'stop' must be a string or an array of strings.".to_owned()),
            }
        }
        Some(_) => return wrong("'stop' must be a string or an array of strings.".to_owned()),
    };
    if stops.len() > MOST_STOPS {
        return wrong(format!("'stop' may hold up to {MOST_STOPS} strings."));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MOST_STOP_BYTES) {
        return wrong(format!("A stop string has from 1 to {MOST_STOP_BYTES} bytes."));
    }
    Ok(stops)
}

fn include_usage(fields: &Fields, stream: bool) -> Result<bool, Refusal> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(Refusal::invalid(Some("stream_options"), message));
    }
    Ok(Fields(options).flag("include_usage")?.unwrap_or(false))
}

/// The conversation, in the form that templates read.
fn chat(object: &mut Map<String, Value>) -> Result<Query, Refusal> {
    let Some(Value::Array(messages)) = object.remove("messages") else {
        return Err(Refusal::invalid(Some("messages"), "'messages' must be an array of messages."));
    };
    if messages.is_empty() {
        return Err(Refusal::invalid(Some("messages"), "'messages' must not be empty."));
    }
    let messages = messages.into_iter().enumerate();
    let messages =
        messages.map(|(index, value)| message(index, value)).collect::<Result<_, _>>()?;
    let no_tools = object.get("tool_choice").is_some_and(|choice| choice == "none");
    let tools = match object.remove("tools") {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) if tools.is_empty() || no_tools => None,
        Some(tools @ Value::Array(_)) => Some(tools),
        Some(_) => return Err(Refusal::invalid(Some("tools"), "'tools' must be an array.")),
    };
    let template_kwargs = match object.remove("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(kwargs)) => kwargs,
        Some(_) => {
            let (name, message) =
                ("chat_template_kwargs", "'chat_template_kwargs' must be an object.");
            return Err(Refusal::invalid(Some(name), message));
        }
    };
    Ok(Query::Chat { messages, tools, template_kwargs })
}

fn message(index: usize, value: Value) -> Result<Value, Refusal> {
    let wrong =
        |what: &str| Refusal::invalid(Some("messages"), format!("messages[{index}]: {what}"));
    let Value::Object(mut message) = value else {
        return Err(wrong("a message is an object."));
    };
    match message.get_mut("role") {
        Some(Value::String(role)) => {
            // Templates know it by its older name.
            if role == "developer" {
                "system".clone_into(role);
            }
        }
        _ => return Err(wrong("'role' must be a string.")),
    }
    let content = match message.remove("content") {
        Some(Value::Array(parts)) => Some(Value::String(text_of(&parts).map_err(wrong)?)),
        Some(Value::Null) | None if message.contains_key("tool_calls") => Some(Value::Null),
        Some(text @ Value::String(_)) => Some(text),
        _ => return Err(wrong("'content' must be a string or an array of text parts.")),
    };
    message.extend(content.map(|content| ("content".to_owned(), content)));
    Ok(Value::Object(message))
}

/// Parts of text, one below the other.
fn text_of(parts: &[Value]) -> Result<String, &'static str> {
    let text = |part: &Value| match (part.get("type"), part.get("text")) {
        (Some(kind), Some(Value::String(text))) if kind == "text" => Ok(text.clone()),
        _ => Err("parts other than {\"type\": \"text\", \"text\": …} are not offered here."),
    };
    Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn texts(object: &mut Map<String, Value>) -> Result<Vec<Query>, Refusal> {
    let wrong = || {
        let message = "'prompt' must be a string or an array of strings.";
        Refusal::invalid(Some("prompt"), message)
    };
    match object.remove("prompt") {
        Some(Value::String(text)) => Ok(vec![Query::Text(text)]),
        Some(Value::Array(texts)) if !texts.is_empty() => {
            let query = |text: Value| match text {
                Value::String(text) => Ok(Query::Text(text)),
                _ => Err(wrong()),
            };
            texts.into_iter().map(query).collect()
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat_with(extra: Value) -> Result<Asked, Refusal> {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hello" }] });
        let Value::Object(extra) = extra else { panic!("an object") };
        body.as_object_mut().unwrap().extend(extra);
        Asked::parse(Face::Chat, body.to_string().as_bytes(), 7)
    }

    #[test]
    fn a_plain_request_has_the_defaults_of_openai() {
        let asked = chat_with(json!({})).unwrap();
        assert_eq!(
            asked.sampling,
            SamplingOptions { temperature: 1.0, seed: 7, ..SamplingOptions::default() }
        );
        assert_eq!((asked.choices, asked.max_new_tokens, asked.stream), (1, None, false));
        let plain = Asked::parse(Face::Completion, br#"{"prompt":["a","b"],"n":2}"#, 0).unwrap();
        assert_eq!((plain.prompts.len(), plain.max_new_tokens), (2, Some(16)));
    }

    #[test]
    fn what_is_asked_is_what_is_done() {
        let asked = chat_with(json!({
            "model": "chandler", "n": 3, "max_tokens": 9, "max_completion_tokens": 5,
            "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
            "seed": -1, "stop": ["a", "b"], "stream": true,
            "stream_options": { "include_usage": true }, "presence_penalty": 0.25, "user": "x",
            "frequency_penalty": -0.5, "logit_bias": { "5": -100, "1999": 1.5 },
            "anything": { "else": [] },
        }))
        .unwrap();
        assert_eq!(asked.max_new_tokens, Some(5));
        assert_eq!((asked.choices, asked.stream, asked.include_usage), (3, true, true));
        assert_eq!(asked.stop, ["a", "b"]);
        let expected = SamplingOptions {
            temperature: 0.0,
            top_k: Some(40),
            top_p: Some(0.5),
            min_p: Some(0.1),
            repetition_penalty: 1.1,
            presence_penalty: 0.25,
            frequency_penalty: -0.5,
            logit_bias: BTreeMap::from([(5, -100.0), (1999, 1.5)]),
            seed: u64::MAX,
            ..SamplingOptions::default()
        };
        assert_eq!(asked.sampling, expected);
        let off = chat_with(json!({ "top_k": -1, "top_p": 1, "min_p": 0, "stop": null })).unwrap();
        let sampling = off.sampling;
        assert_eq!((sampling.top_k, sampling.top_p, sampling.min_p), (None, None, None));
        for (asked, temperature) in [(1e-7, 0.0), (1e-6, 1e-6), (f64::MIN_POSITIVE, 0.0)] {
            let sampling = chat_with(json!({ "temperature": asked })).unwrap().sampling;
            assert_eq!(sampling.temperature, temperature);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (extra, param) in [
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "temperature": 2.5 }), "temperature"),
            (json!({ "max_tokens": 0 }), "max_tokens"),
            (json!({ "max_tokens": 1.5 }), "max_tokens"),
            (json!({ "n": 9 }), "n"),
            (json!({ "stop": [1] }), "stop"),
            (json!({ "stop": "" }), "stop"),
            (json!({ "stop": ["1", "2", "3", "4", "5"] }), "stop"),
            (json!({ "stream": "yes" }), "stream"),
            (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
            (json!({ "frequency_penalty": 2.5 }), "frequency_penalty"),
            (json!({ "logprobs": true }), "logprobs"),
            (json!({ "logit_bias": { "5": 100.5 } }), "logit_bias"),
            (json!({ "logit_bias": { "5": "1" } }), "logit_bias"),
            (json!({ "logit_bias": { "five": 1 } }), "logit_bias"),
            (json!({ "logit_bias": [5] }), "logit_bias"),
            (json!({ "response_format": { "type": "json_object" } }), "response_format"),
            (json!({ "tool_choice": "required" }), "tool_choice"),
            (json!({ "model": 3 }), "model"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": "Hello" }), "messages"),
            (json!({ "messages": [{ "content": "x" }] }), "messages"),
            (json!({ "messages": [{ "role": "user" }] }), "messages"),
            (
                json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
                "messages",
            ),
        ] {
            let refusal = chat_with(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((refusal.status, refusal.param), (400, Some(param)), "{extra}: {refusal:?}");
        }
        for body in ["", "[]", "{", "{\"prompt\": [3]}", "{\"prompt\": []}"] {
            assert_eq!(Asked::parse(Face::Completion, body.as_bytes(), 0).unwrap_err().status, 400);
        }
        let too_many = br#"{"prompt": ["a", "b", "c"], "n": 3}"#;
        assert_eq!(Asked::parse(Face::Completion, too_many, 0).unwrap_err().param, Some("n"));
    }

    #[test]
    fn parts_become_text_and_a_developer_the_system() {
        let asked = chat_with(json!({ "messages": [
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": [
                { "type": "text", "text": "a" }, { "type": "text", "text": "b" },
            ] },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }] },
            { "role": "tool", "content": "4", "tool_call_id": "1" },
        ], "tools": [{ "type": "function" }], "chat_template_kwargs": { "enable_thinking": false } }));
        let [Query::Chat { messages, tools, template_kwargs }] = &asked.unwrap().prompts[..] else {
            panic!("a conversation")
        };
        assert_eq!(messages[0], json!({ "role": "system", "content": "Be brief." }));
        assert_eq!(messages[1]["content"], "a\nb");
        assert_eq!(
            (&messages[2]["content"], &messages[3]["tool_call_id"]),
            (&Value::Null, &json!("1"))
        );
        assert!(tools.is_some() && template_kwargs["enable_thinking"] == false);
    }
}
