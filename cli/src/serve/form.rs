//! Answers in the form of OpenAI's API, whole and in chunks.

use serde_json::{Value, json};

use super::request::Face;

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It is as long as it may be.
    Length,
}

impl Finish {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// How many tokens were read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl Usage {
    fn json(self) -> Value {
        let Self { prompt_tokens, completion_tokens } = self;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        })
    }
}

/// One choice of a whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) finish: Option<Finish>,
}

/// What all parts of one answer share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub(crate) face: Face,
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) model: String,
}

impl Form {
    /// The whole answer.
    pub(crate) fn whole(&self, choices: &[Choice], usage: Usage) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let finish = choice.finish.map(Finish::as_str);
            match self.face {
                Face::Chat => json!({
                    "index": index,
                    "message": { "role": "assistant", "content": choice.text },
                    "logprobs": null,
                    "finish_reason": finish,
                }),
                Face::Completion => json!({
                    "index": index,
                    "text": choice.text,
                    "logprobs": null,
                    "finish_reason": finish,
                }),
            }
        };
        let choices: Vec<Value> = choices.iter().enumerate().map(choice).collect();
        let object = match self.face {
            Face::Chat => "chat.completion",
            Face::Completion => "text_completion",
        };
        let mut whole = self.head(object, choices);
        whole["usage"] = usage.json();
        whole
    }

    /// The first chunk of a choice; a plain completion has none.
    pub(crate) fn role(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        (self.face == Face::Chat).then(|| self.chunk(index, delta, None))
    }

    /// Some more text of a choice.
    pub(crate) fn delta(&self, index: usize, text: &str) -> Value {
        match self.face {
            Face::Chat => self.chunk(index, json!({ "content": text }), None),
            Face::Completion => self.chunk(index, json!(text), None),
        }
    }

    /// The end of a choice.
    pub(crate) fn finish(&self, index: usize, finish: Finish) -> Value {
        match self.face {
            Face::Chat => self.chunk(index, json!({}), Some(finish)),
            Face::Completion => self.chunk(index, json!(""), Some(finish)),
        }
    }

    /// The count of tokens, after all choices.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.head(self.chunk_object(), vec![]);
        chunk["usage"] = usage.json();
        chunk
    }

    fn chunk(&self, index: usize, said: Value, finish: Option<Finish>) -> Value {
        let key = match self.face {
            Face::Chat => "delta",
            Face::Completion => "text",
        };
        let finish = finish.map(Finish::as_str);
        let mut choice = json!({ "index": index });
        choice[key] = said;
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(finish);
        self.head(self.chunk_object(), vec![choice])
    }

    fn chunk_object(&self) -> &'static str {
        match self.face {
            Face::Chat => "chat.completion.chunk",
            Face::Completion => "text_completion",
        }
    }

    fn head(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// A value as a server-sent event.
pub(crate) fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// The end of a stream.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn form(face: Face) -> Form {
        Form { face, id: "x-1".into(), created: 5, model: "m".into() }
    }

    #[test]
    fn a_chat_comes_in_chunks_of_openai() {
        let form = form(Face::Chat);
        let role = form.role(1).unwrap();
        assert_eq!(
            role,
            json!({
                "id": "x-1", "object": "chat.completion.chunk", "created": 5, "model": "m",
                "choices": [{
                    "index": 1, "delta": { "role": "assistant", "content": "" },
                    "logprobs": null, "finish_reason": null,
                }],
            })
        );
        assert_eq!(form.delta(0, "a\n")["choices"][0]["delta"], json!({ "content": "a\n" }));
        let end = form.finish(0, Finish::Length);
        assert_eq!(end["choices"][0]["delta"], json!({}));
        assert_eq!(end["choices"][0]["finish_reason"], "length");
        let usage = form.usage(Usage { prompt_tokens: 3, completion_tokens: 4 });
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(7)));
        assert_eq!(event(&json!({ "a": "b\nc" })), "data: {\"a\":\"b\\nc\"}\n\n");
    }

    #[test]
    fn whole_answers_and_plain_completions_have_their_own_forms() {
        let choice = Choice { text: "t".into(), finish: Some(Finish::Stop) };
        let whole = form(Face::Chat).whole(std::slice::from_ref(&choice), Usage::default());
        assert_eq!(whole["object"], "chat.completion");
        assert_eq!(whole["choices"][0]["message"], json!({ "role": "assistant", "content": "t" }));
        let plain = form(Face::Completion);
        let whole = plain.whole(&[choice], Usage::default());
        assert_eq!(
            (&whole["object"], &whole["choices"][0]["text"]),
            (&json!("text_completion"), &json!("t"))
        );
        assert!(plain.role(0).is_none());
        assert_eq!(plain.delta(2, "u")["choices"][0]["text"], "u");
    }
}
