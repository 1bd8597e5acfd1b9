//! One JSON line, whichever of the usual shapes it has.

use serde_json::{Map, Value, json};

use crate::{DataError, strict_json};

/// A conversation: objects with `role`, `content` and whatever else the template reads.
pub type Messages = Vec<Value>;

/// Keys of a record that a message names.
const KEYS_SHOWN: usize = 8;

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// `messages` or `conversations`.
    Chat {
        /// All turns.
        messages: Messages,
        /// What comes beside them.
        extras: ChatExtras,
    },
    /// `prompt` and `completion` as lists of messages.
    ChatCompletion {
        /// The turns before.
        prompt: Messages,
        /// The turns to learn.
        completion: Messages,
        /// What comes beside them.
        extras: ChatExtras,
    },
    /// `text`.
    Text(String),
    /// `prompt` and `completion` as strings.
    TextCompletion {
        /// The text before.
        prompt: String,
        /// The text to learn.
        completion: String,
    },
    /// `instruction`, `input` and `output`.
    Instruction {
        /// What to do.
        instruction: String,
        /// What to do it with; may be empty.
        input: String,
        /// The answer.
        output: String,
    },
}

/// What a chat record may carry beside its messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatExtras {
    /// Tools that the template is to offer.
    pub tools: Option<Value>,
    /// Arguments for the template, such as `enable_thinking`.
    pub template_kwargs: Map<String, Value>,
}

impl Record {
    /// Reads a line.
    pub fn parse(line: &str) -> Result<Self, DataError> {
        let value = strict_json::parse(line)
            .map_err(|error| bad(format!("it is not valid JSON: {error}")))?;
        let Value::Object(mut object) = value else {
            return Err(bad(format!("it is {}, not a JSON object", kind(&value))));
        };
        let extras = extras(&mut object)?;
        if let Some(messages) = object.remove("messages") {
            return Ok(Self::Chat { messages: read_messages("messages", messages)?, extras });
        }
        if let Some(turns) = object.remove("conversations") {
            return Ok(Self::Chat { messages: read_turns(turns)?, extras });
        }
        if object.contains_key("prompt") || object.contains_key("completion") {
            return prompt_completion(object, extras);
        }
        if object.contains_key("instruction") || object.contains_key("output") {
            let input = match object.remove("input") {
                None | Some(Value::Null) => String::new(),
                Some(value) => string("input", Some(value))?,
            };
            return Ok(Self::Instruction {
                instruction: string("instruction", object.remove("instruction"))?,
                input,
                output: string("output", object.remove("output"))?,
            });
        }
        if let Some(text) = object.remove("text") {
            return Ok(Self::Text(string("text", Some(text))?));
        }
        let keys = object.keys().map(|key| word(key)).take(KEYS_SHOWN).collect::<Vec<_>>();
        let more = if object.len() > KEYS_SHOWN { " and more" } else { "" };
        let keys = keys.join(", ");
        Err(bad(format!("it has none of the keys that a record has, but [{keys}]{more}")))
    }
}

fn prompt_completion(
    mut object: Map<String, Value>,
    extras: ChatExtras,
) -> Result<Record, DataError> {
    let (prompt, completion) = (object.remove("prompt"), object.remove("completion"));
    if let (Some(Value::Array(_)), Some(Value::String(_)))
    | (Some(Value::String(_)), Some(Value::Array(_))) = (&prompt, &completion)
    {
        return Err(bad("prompt and completion are not both strings or both lists".to_owned()));
    }
    match prompt {
        Some(prompt @ Value::Array(_)) => Ok(Record::ChatCompletion {
            prompt: read_messages("prompt", prompt)?,
            completion: read_messages(
                "completion",
                completion.ok_or_else(|| bad("completion is missing".to_owned()))?,
            )?,
            extras,
        }),
        prompt => Ok(Record::TextCompletion {
            prompt: string("prompt", prompt)?,
            completion: string("completion", completion)?,
        }),
    }
}

pub(crate) fn extras(object: &mut Map<String, Value>) -> Result<ChatExtras, DataError> {
    let tools = match object.remove("tools") {
        None | Some(Value::Null) => None,
        // Data sets that went through Arrow hold them as JSON in a string.
        Some(Value::String(text)) => Some(
            strict_json::parse(&text)
                .map_err(|error| bad(format!("tools is a string that is not JSON: {error}")))?,
        ),
        Some(value) => Some(value),
    };
    let template_kwargs = match object.remove("chat_template_kwargs") {
        Some(Value::Object(kwargs)) => kwargs,
        _ => Map::new(),
    };
    Ok(ChatExtras { tools, template_kwargs })
}

fn read_messages(key: &str, value: Value) -> Result<Messages, DataError> {
    let Value::Array(messages) = value else {
        return Err(bad(format!("{key} is {}, not a list of messages", kind(&value))));
    };
    if messages.is_empty() {
        return Err(bad(format!("{key} is empty")));
    }
    for (index, message) in messages.iter().enumerate() {
        let has = |key: &str| message.get(key).is_some();
        let Some(role) = message.get("role").and_then(Value::as_str) else {
            return Err(bad(format!("message {index} of {key} has no role")));
        };
        if !has("content") && !has("tool_calls") {
            let role = word(role);
            return Err(bad(format!("message {index} of {key} ({role}) has no content")));
        }
    }
    Ok(messages)
}

/// ShareGPT: `from` and `value`; some sets have `role` and `content` under the same key.
fn read_turns(value: Value) -> Result<Messages, DataError> {
    let Value::Array(turns) = &value else {
        return Err(bad(format!("conversations is {}, not a list", kind(&value))));
    };
    if turns.first().is_some_and(|turn| turn.get("role").is_some()) {
        return read_messages("conversations", value);
    }
    let message = |(index, turn): (usize, &Value)| {
        let text = |key: &str| turn.get(key).and_then(Value::as_str);
        let (Some(from), Some(content)) = (text("from"), text("value")) else {
            return Err(bad(format!("turn {index} of conversations has no from and value")));
        };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "system" => "system",
            "tool" | "function_response" | "observation" => "tool",
            other => {
                let from = word(other);
                return Err(bad(format!("turn {index} is from {from}, who is unknown")));
            }
        };
        Ok(json!({ "role": role, "content": content }))
    };
    if turns.is_empty() {
        return Err(bad("conversations is empty".to_owned()));
    }
    turns.iter().enumerate().map(message).collect()
}

fn string(key: &str, value: Option<Value>) -> Result<String, DataError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(bad(format!("{key} is {}, not a string", kind(&other)))),
        None => Err(bad(format!("{key} is missing"))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A name as a message may repeat it: reasons end up in logs and reports, the record's text must not.
fn word(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.len() <= 32 && name.chars().all(plain) {
        format!("{name:?}")
    } else {
        format!("a text of {} bytes", name.len())
    }
}

fn bad(reason: String) -> DataError {
    DataError::Record { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_known() {
        let chat = |messages: Value| match messages {
            Value::Array(messages) => Record::Chat { messages, extras: ChatExtras::default() },
            _ => unreachable!(),
        };
        let user = json!({ "role": "user", "content": "a" });
        let assistant = json!({ "role": "assistant", "content": "b" });
        for (line, expected) in [
            (json!({ "messages": [user, assistant] }), chat(json!([user, assistant]))),
            (
                json!({ "conversations": [
                    { "from": "human", "value": "a" }, { "from": "gpt", "value": "b" }
                ] }),
                chat(json!([user, assistant])),
            ),
            (json!({ "text": "t", "id": 3 }), Record::Text("t".to_owned())),
            (
                json!({ "prompt": "p", "completion": "c" }),
                Record::TextCompletion { prompt: "p".to_owned(), completion: "c".to_owned() },
            ),
            (
                json!({ "prompt": [user], "completion": [assistant] }),
                Record::ChatCompletion {
                    prompt: vec![user.clone()],
                    completion: vec![assistant.clone()],
                    extras: ChatExtras::default(),
                },
            ),
            (
                json!({ "instruction": "i", "input": "", "output": "o" }),
                Record::Instruction {
                    instruction: "i".to_owned(),
                    input: String::new(),
                    output: "o".to_owned(),
                },
            ),
        ] {
            assert_eq!(Record::parse(&line.to_string()).unwrap(), expected);
        }
    }

    #[test]
    fn reasons_name_keys_and_not_texts() {
        let secret = "my password is hunter2";
        for line in [
            json!({ secret: 1 }),
            json!({ "conversations": [{ "from": secret, "value": "a" }] }),
            json!({ "messages": [{ "role": secret }] }),
            json!({ "messages": secret }),
            json!({ "prompt": [secret], "completion": secret }),
            json!({ "text": [secret] }),
        ] {
            let error = Record::parse(&line.to_string()).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let many: Map<String, Value> = (0..100).map(|key| (format!("k{key}"), json!(0))).collect();
        let error = Record::parse(&json!(many).to_string()).unwrap_err().to_string();
        assert!(error.ends_with("\"k7\"] and more"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, reason) in [
            ("{", "not valid JSON"),
            ("[1]", "a list, not a JSON object"),
            (r#"{"question": "a", "answer": "b"}"#, r#"["question", "answer"]"#),
            (r#"{"messages": []}"#, "messages is empty"),
            (r#"{"messages": "hello"}"#, "a string, not a list"),
            (r#"{"messages": [{"content": "a"}]}"#, "message 0 of messages has no role"),
            (r#"{"messages": [{"role": "user"}]}"#, "(\"user\") has no content"),
            (r#"{"prompt": "a"}"#, "completion is missing"),
            (r#"{"prompt": "a", "completion": 4}"#, "completion is a number"),
            (r#"{"prompt": "a", "completion": []}"#, "not both strings or both lists"),
            (r#"{"conversations": [{"from": "alien", "value": "a"}]}"#, "\"alien\""),
            (r#"{"text": null}"#, "text is null"),
            (r#"{"instruction": "a"}"#, "output is missing"),
        ] {
            let error = Record::parse(line).unwrap_err();
            assert!(error.to_string().contains(reason), "{line}: {error}");
            assert!(error.hint().is_some());
        }
    }
}
